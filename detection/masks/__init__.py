"""Masks of detections, pasted into their image and encoded one at a time."""

from vovnet.detection.masks.pasting import detect, encode_box_masks
from vovnet.detection.masks.rle import encode_masks

__all__ = ["detect", "encode_box_masks", "encode_masks"]
