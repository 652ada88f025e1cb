"""Anchors against the published numbers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchvision.models.detection.image_list import ImageList

from vovnet.detection.legacy.anchors import LegacyAnchorGenerator, base_anchors, inside

SIZES, STRIDES, RATIOS = (32, 64, 128, 256, 512), (4, 8, 16, 32, 64), (0.5, 1.0, 2.0)
MAPS = ((40, 48), (20, 24), (10, 12), (5, 6), (3, 3))
"""Of a 160×192 image, as the reference's unit case has them."""


@pytest.mark.parametrize("level", range(5))
def test_base_anchors_are_the_published_ones(units: dict[str, Any], level: int) -> None:
    assert base_anchors(STRIDES[level], SIZES[level], RATIOS).tolist() == units["cell_anchors"][level]


def test_all_anchors_equal_the_reference(units: dict[str, Any]) -> None:
    generator = LegacyAnchorGenerator(SIZES, STRIDES, RATIOS)
    images = ImageList(torch.zeros(2, 3, 160, 192), [(150, 187), (160, 192)])
    first, second = generator(images, [torch.zeros(2, 1, *size) for size in MAPS])
    assert torch.equal(first, units["anchors.all"])
    assert torch.equal(second, first)
    assert torch.equal(inside(first, (150, 187)), units["anchors.visible"])
    assert generator.num_anchors_per_location() == [3] * 5


def test_an_anchor_on_the_border_straddles_it() -> None:
    anchors = torch.tensor([[0.0, 0, 9, 9], [-0.5, 0, 5, 5], [0, 0, 10, 5], [0, 0, 5, 10], [0, -1, 5, 5]])
    assert inside(anchors, (10, 10)).tolist() == [True, False, False, False, False]
