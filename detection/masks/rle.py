"""COCO's run lengths (RLE) of masks, computed one mask at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

MASK_THRESHOLD = 0.5
"""A pixel belongs to an object if its mask probability is above this value, as in torchvision's references."""


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


def encode_part(part: NDArray[np.bool_], corner: tuple[int, int], size: tuple[int, int]) -> bytes:
    """Return the compressed RLE counts of a mask of which only a part is given; the rest is 0.

    Equal to what ``pycocotools.mask.encode`` returns for the whole mask, in memory for the part alone.

    Args:
        part: (h, w).
        corner: row and column of the part's first pixel in the mask.
        size: height and width of the mask.
    """
    from pycocotools import mask as coco_mask

    height, width = size
    rows = part.shape[0]
    # COCO counts along columns. A 0 above and below each of them makes every run of ones start and end in its column.
    columns = np.zeros((part.shape[1], rows + 2), dtype=np.bool_)
    columns[:, 1:-1] = part.T
    changes = np.flatnonzero(columns[:, 1:] != columns[:, :-1])
    column, row = np.divmod(changes, rows + 1)
    positions = (corner[1] + column) * height + corner[0] + row
    # A run that reaches the last row of the mask may go on in the first row of the next column.
    joined = np.flatnonzero(positions[1:-1:2] == positions[2::2])
    positions = np.delete(positions, np.concatenate((2 * joined + 1, 2 * joined + 2)))
    counts = np.diff(positions, prepend=0, append=height * width)
    if counts.size > 1 and counts[-1] == 0:
        counts = counts[:-1]
    return bytes(coco_mask.frPyObjects({"size": [height, width], "counts": counts.tolist()}, height, width)["counts"])
