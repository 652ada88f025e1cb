"""Evaluate a detector on a dataset with pycocotools."""
