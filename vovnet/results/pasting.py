"""Masks on grids over boxes, pasted into their image as torchvision does it and encoded, one at a time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from vovnet.results.rle import MASK_THRESHOLD, encode_part

_ROWS = 256  # of a mask that are computed at a time, so that a large box takes little memory


def encode_pasted(masks: NDArray[np.float32], boxes: NDArray[np.float32], size: tuple[int, int]) -> list[bytes]:
    """Return the compressed RLE counts of masks, those of torchvision's ``paste_masks_in_image`` above 0.5.

    The numbers are torchvision's but for the last bit, so that a pixel can differ whose probability is 0.5 ± 1e-7.

    Args:
        masks: (N, M, M) probabilities on a grid over each box.
        boxes: (N, 4) XYXY pixels.
        size: height and width of the image.
    """
    grid = masks.shape[-1]
    # torchvision models/detection/roi_heads.py, expand_masks and expand_boxes.
    padded = np.pad(masks.astype(np.float32), ((0, 0), (1, 1), (1, 1)))
    corners = _expanded(boxes.astype(np.float32), np.float32((grid + 2) / grid)).astype(np.int64)
    return [
        encode_part(*_pasted(mask, (x0, y0, x1, y1), size), size)
        for mask, (x0, y0, x1, y1) in zip(padded, corners.tolist(), strict=True)
    ]


def _expanded(boxes: NDArray[np.float32], scale: np.float32) -> NDArray[np.float32]:
    half = np.float32(0.5)
    low, high = boxes[:, :2], boxes[:, 2:]
    centre = (high + low) * half
    sides = (high - low) * half * scale
    return np.concatenate((centre - sides, centre + sides), axis=1)


def _pasted(
    mask: NDArray[np.float32], box: tuple[int, int, int, int], size: tuple[int, int]
) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """Return a mask's pixels inside the image and its box, with the row and column of the first.

    Args:
        mask: (M + 2, M + 2), with a border of zeros.
        box: the first and last pixel, which may lie outside of the image.
        size: height and width of the image.
    """
    x0, y0, x1, y1 = box
    left, right = max(x0, 0), max(min(x1 + 1, size[1]), max(x0, 0))
    top, bottom = max(y0, 0), max(min(y1 + 1, size[0]), max(y0, 0))
    columns = _samples(mask.shape[1], max(x1 - x0 + 1, 1), left - x0, right - x0)
    rows = _samples(mask.shape[0], max(y1 - y0 + 1, 1), top - y0, bottom - y0)
    part = np.zeros((bottom - top, right - left), dtype=np.bool_)
    for start, (low, high, weight) in _chunks(rows):
        wide = _mixed(mask[low][:, columns[0]], mask[low][:, columns[1]], columns[2])
        below = _mixed(mask[high][:, columns[0]], mask[high][:, columns[1]], columns[2])
        part[start : start + len(low)] = _mixed(wide, below, weight[:, None]) > MASK_THRESHOLD
    return part, (top, left)


_Samples = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]
"""For each pixel: the cells before and after it, and the weight of the latter."""


def _samples(cells: int, pixels: int, first: int, last: int) -> _Samples:
    """Return where pixels ``first`` to ``last`` of ``pixels`` lie between cells: bilinear, corners not aligned."""
    scale = np.float32(cells / pixels)
    places = scale * (np.arange(first, last, dtype=np.float32) + np.float32(0.5)) - np.float32(0.5)
    places = np.maximum(places, np.float32(0))
    low = np.minimum(places.astype(np.int64), cells - 1)
    weight = np.minimum(np.maximum(places - low.astype(np.float32), np.float32(0)), np.float32(1))
    return low, np.minimum(low + 1, cells - 1), weight


def _chunks(samples: _Samples) -> Iterator[tuple[int, _Samples]]:
    low, high, weight = samples
    for start in range(0, len(low), _ROWS):
        stop = start + _ROWS
        yield start, (low[start:stop], high[start:stop], weight[start:stop])


def _mixed(before: NDArray[np.float32], after: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    return before * (1 - weight) + after * weight
