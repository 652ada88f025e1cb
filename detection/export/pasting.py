"""Masks on a grid over each box, pasted into the image as torchvision does it, as two matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

THRESHOLD = 0.5


def paste_masks(masks: Tensor, boxes: Tensor, height: Any, width: Any) -> Tensor:
    """Paste masks into the image; equal to torchvision's ``paste_masks_in_image`` above 0.5 but for rounding.

    Args:
        masks: (K, M, M) probabilities.
        boxes: (K, 4) XYXY in pixels of the image.
        height: the image's height; it may be a symbolic size.
        width: the image's width.

    Returns:
        (K, height, width) uint8, 0 or 1.
    """
    cells = masks.shape[-1]
    padded = F.pad(masks, (1, 1, 1, 1))
    half = (boxes[:, 2:] - boxes[:, :2]) * 0.5 * ((cells + 2) / cells)
    centre = (boxes[:, 2:] + boxes[:, :2]) * 0.5
    first, last = (centre - half).to(torch.int64), (centre + half).to(torch.int64)
    rows = _weights(first[:, 1], last[:, 1], cells + 2, height)
    columns = _weights(first[:, 0], last[:, 0], cells + 2, width)
    return (rows @ padded @ columns.transpose(1, 2) > THRESHOLD).to(torch.uint8)


def _weights(first: Tensor, last: Tensor, cells: int, count: Any) -> Tensor:
    """Return the weight of each cell in each pixel, (K, count, cells): bilinear inside [first, last], 0 outside."""
    length = (last - first + 1).clamp(min=1)[:, None]
    place = torch.arange(count) - first[:, None]
    source = ((place + 0.5) * (cells / length.float()) - 0.5).clamp(min=0, max=cells - 1)
    weights = (1 - (source[:, :, None] - torch.arange(cells)).abs()).clamp(min=0)
    inside = (place >= 0) & (place < length)
    return weights * inside[:, :, None]
