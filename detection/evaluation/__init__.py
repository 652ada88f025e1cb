"""Evaluate a detector with pycocotools."""
