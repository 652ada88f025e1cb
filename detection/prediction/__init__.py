"""Predict on images and draw the detections."""
