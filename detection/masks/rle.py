"""COCO's run lengths (RLE) of masks in tensors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vovnet.results.rle import MASK_THRESHOLD, encode_part


def encode_masks(masks: Tensor) -> list[bytes]:
    """Return the compressed RLE counts of masks.

    Args:
        masks: (N, 1, H, W) or (N, H, W), probabilities (those above 0.5 count), bool or uint8.
    """
    if masks.ndim == 4:
        masks = masks[:, 0]
    height, width = int(masks.shape[1]), int(masks.shape[2])
    return [encode_part(to_bits(mask), (0, 0), (height, width)) for mask in masks]


def to_bits(mask: Tensor) -> NDArray[np.bool_]:
    """Return which pixels belong to an object, from probabilities, bool or integers."""
    bits = mask > MASK_THRESHOLD if mask.is_floating_point() else mask != 0
    return bits.detach().cpu().numpy()
