"""Pooling from all levels at once equals torchvision's, level by level."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign

from vovnet.detection.export.pooling import PyramidPool

HEIGHT, WIDTH = 96, 160
STRIDES = (4, 8, 16)


def some_boxes(seed: int) -> Tensor:
    """Boxes of all sizes, and narrow ones in the last cells of each level."""
    numbers = torch.Generator().manual_seed(seed)
    limits = torch.tensor([WIDTH, HEIGHT, WIDTH, HEIGHT])
    anywhere = torch.rand(60, 4, generator=numbers) * limits
    edge = limits - torch.rand(60, 4, generator=numbers) * torch.tensor([20.0, 20.0, 1e-9, 1e-9])
    long = torch.cat((edge[:30, :1], anywhere[:30, 1:2] * 0.1, edge[:30, 2:3], anywhere[30:, 3:]), dim=1)
    boxes = torch.cat((anywhere, edge, long))
    return torch.cat((torch.minimum(boxes[:, :2], boxes[:, 2:]), torch.maximum(boxes[:, :2], boxes[:, 2:])), dim=1)


@pytest.mark.parametrize("samples", [2, 1])
def test_results_are_torchvisions(samples: int) -> None:
    numbers = torch.Generator().manual_seed(0)
    levels = [torch.randn(2, 5, HEIGHT // stride, WIDTH // stride, generator=numbers) for stride in STRIDES]
    boxes = [some_boxes(1), some_boxes(2)]
    theirs: Any = MultiScaleRoIAlign(["0", "1", "2"], output_size=7, sampling_ratio=samples, canonical_scale=60)
    features = {str(number): level for number, level in enumerate(levels)}
    expected = theirs(features, boxes, [(HEIGHT, WIDTH)] * 2)
    found = PyramidPool(theirs, STRIDES)(levels, torch.stack(boxes))
    assert found.shape == expected.shape
    assert (expected == 0).any()  # samples outside of the maps
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)
