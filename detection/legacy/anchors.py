"""Detectron's anchors: rounded boxes around the centre of the first cell of a stride, repeated at fixed strides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList


def base_anchors(stride: int, size: float, ratios: Sequence[float]) -> Tensor:
    """Return the anchors at the first position of a level: (len(ratios), 4) float32, inclusive corners.

    Reference modeling/rpn/anchor_generator.py:220-289. Width and height of a stride-sized box of each ratio are rounded
    before they are scaled to ``size``; torchvision rounds half the scaled sides, around (0, 0)
    (models/detection/anchor_utils.py:65-74).

    Args:
        stride: distance of two positions in pixels.
        size: side in pixels of the anchor with ratio 1.
        ratios: height / width.
    """
    centre = 0.5 * (stride - 1)
    widths = np.round(np.sqrt(stride * stride / np.asarray(ratios, dtype=np.float64)))
    heights = np.round(widths * np.asarray(ratios))
    half_width = 0.5 * (widths * (size / stride) - 1)
    half_height = 0.5 * (heights * (size / stride) - 1)
    corners = (centre - half_width, centre - half_height, centre + half_width, centre + half_height)
    return torch.from_numpy(np.stack(corners, axis=1).astype(np.float32))


class LegacyAnchorGenerator(nn.Module):
    """Generates the anchors of each level, with one size per level, at multiples of the level's stride.

    Reference modeling/rpn/anchor_generator.py:73-95. torchvision divides the padded image by the map's size instead,
    which for P6 of an 800-pixel side gives 61 and not 64 (models/detection/anchor_utils.py:119-123).
    """

    def __init__(self, sizes: Sequence[float], strides: Sequence[int], ratios: Sequence[float]) -> None:
        super().__init__()
        self.strides = tuple(strides)
        self._cells = [base_anchors(stride, size, ratios) for stride, size in zip(strides, sizes, strict=True)]

    def num_anchors_per_location(self) -> list[int]:
        """Return the number for each level, as torchvision's generator does."""
        return [len(cells) for cells in self._cells]

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        """Return for each image the anchors of all levels (sum of H · W · A, 4), in the order y, x, ratio."""
        device = feature_maps[0].device
        levels = zip(self.strides, feature_maps, self._cells, strict=True)
        anchors = torch.cat([_placed(s, map_.shape[-2:], cells, device) for s, map_, cells in levels])
        return [anchors] * len(image_list.image_sizes)


def _placed(stride: int, size: Sequence[int], cells: Tensor, device: torch.device) -> Tensor:
    height, width = size
    x = torch.arange(0, width * stride, stride, dtype=torch.float32, device=device)
    y = torch.arange(0, height * stride, stride, dtype=torch.float32, device=device)
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    shifts = torch.stack((columns, rows, columns, rows), dim=-1)
    return (shifts[:, :, None] + cells.to(device)).reshape(-1, 4)


def inside(anchors: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a mask of the anchors (N, 4) inside the image without padding: the straddle rule with threshold 0.

    Reference modeling/rpn/anchor_generator.py:97-110. torchvision has no such rule.
    """
    height, width = size
    return (anchors[:, 0] >= 0) & (anchors[:, 1] >= 0) & (anchors[:, 2] < width) & (anchors[:, 3] < height)
