"""Masks of detections, pasted into their image and encoded one at a time."""

from vovnet.detection.masks.pasting import detect, encode_box_masks
from vovnet.detection.masks.rle import MASK_THRESHOLD, encode_masks, encode_part

__all__ = ["MASK_THRESHOLD", "detect", "encode_box_masks", "encode_masks", "encode_part"]
