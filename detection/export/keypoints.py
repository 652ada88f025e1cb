"""Keypoints from heatmaps on a grid over each box, without shapes that depend on the boxes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

WINDOW = 80
"""Side in pixels of the window around a heatmap's best cell in which the best pixel is looked for."""

_CUBIC = -0.75  # PyTorch's coefficient of bicubic interpolation
_REACH = 2  # cells to each side that bicubic interpolation takes in


def heatmap_keypoints(maps: Tensor, boxes: Tensor) -> Tensor:
    """Return the keypoints of boxes: the best pixel of each heatmap after bicubic interpolation to its box's size.

    torchvision (models/detection/roi_heads.py, ``heatmaps_to_keypoints``) interpolates every heatmap to the whole box.
    This looks only into a window around the best cell, which is the whole box up to a side of :data:`WINDOW` pixels. In
    a larger box torchvision's pixel is another one only if the heatmap is nearly as high elsewhere.

    Args:
        maps: (R, P, S, S) logits of P keypoints.
        boxes: (R, 4) XYXY pixels.

    Returns:
        (R, P, 3): x and y in the boxes' pixels, and the logit there.
    """
    count, points, cells = maps.shape[0], maps.shape[1], maps.shape[-1]
    corners, sides = boxes[:, None, :2], (boxes[:, None, 2:] - boxes[:, None, :2]).clamp(min=1)
    pixels = sides.ceil()  # (R, 1, 2)
    best = maps.flatten(2).argmax(2)
    cell = torch.stack((best % cells, best // cells), dim=2)
    centre = ((cell + 0.5) * pixels / cells - 0.5).round()
    first = torch.minimum(centre - WINDOW // 2, pixels - WINDOW).clamp(min=0)
    places = first[..., None] + torch.arange(WINDOW)  # (R, P, 2, WINDOW)
    columns, rows = (_weights(places[:, :, axis], pixels[:, :, axis], cells) for axis in (0, 1))
    padded = F.pad(maps, (_REACH,) * 4, mode="replicate")
    fine = rows @ padded @ columns.transpose(2, 3)  # (R, P, WINDOW, WINDOW)
    inside = places < pixels[..., None]
    fine = torch.where(inside[:, :, 1, :, None] & inside[:, :, 0, None, :], fine, -torch.inf)
    score, position = fine.reshape(count, points, -1).max(2)
    offset = torch.stack((position % WINDOW, position // WINDOW), dim=2)
    xy = (first + offset + 0.5) * (sides / pixels) + corners
    return torch.cat((xy, score[..., None]), dim=2)


def _weights(places: Tensor, pixels: Tensor, cells: int) -> Tensor:
    """Return the weight of each cell of a padded heatmap in each pixel: (R, P, W) places → (R, P, W, S + 4)."""
    source = (places + 0.5) * (cells / pixels[..., None]) - 0.5
    distance = (source[..., None] - (torch.arange(cells + 2 * _REACH) - _REACH)).abs()
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance * distance + 1
    far = ((_CUBIC * distance - 5 * _CUBIC) * distance + 8 * _CUBIC) * distance - 4 * _CUBIC
    return torch.where(distance <= 1, near, torch.where(distance < 2, far, 0.0))
