"""Keypoints from heatmaps in a window equal torchvision's, which interpolates to whole boxes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints

from vovnet.detection.export.keypoints import WINDOW, heatmap_keypoints

CELLS = 56


def boxes_of(count: int, most: float) -> Tensor:
    numbers = torch.Generator().manual_seed(0)
    corners = torch.rand(count, 2, generator=numbers) * 50
    return torch.cat((corners, corners + 0.3 + torch.rand(count, 2, generator=numbers) * (most - 0.3)), dim=1)


def check(maps: Tensor, boxes: Tensor) -> None:
    points, scores = heatmaps_to_keypoints(maps, boxes)
    found = heatmap_keypoints(maps, boxes)
    torch.testing.assert_close(found[..., :2], points[..., :2], rtol=0, atol=1e-3)
    torch.testing.assert_close(found[..., 2], scores, rtol=1e-4, atol=1e-4)


def test_any_heatmap_of_boxes_up_to_the_window() -> None:
    coarse = torch.randn(30, 4, 9, 9, generator=torch.Generator().manual_seed(1))
    check(F.interpolate(coarse, (CELLS, CELLS), mode="bicubic") * 3, boxes_of(30, WINDOW))


def test_heatmaps_with_one_peak_in_boxes_of_all_sizes() -> None:
    places = torch.rand(30, 4, 2, 1, generator=torch.Generator().manual_seed(2)) * CELLS
    x, y = (-((torch.arange(CELLS) - places[:, :, axis]) ** 2) / 30 for axis in (0, 1))
    check(y[..., :, None] + x[..., None, :], boxes_of(30, 900))
