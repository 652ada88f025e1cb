"""The resize in the graph: torchvision's and the reference's sizes and pixels."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from vovnet.detection.export.resizing import LegacyResizing, TorchvisionResizing
from vovnet.detection.legacy.transform import LegacyTransform, resized_size

LIMITS = [(800, 1333), (256, 400), (64, 64), (320, 640), (1344, 1344)]
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
SHAPES = [(480, 640), (333, 500), (49, 49), (200, 31), (7, 90), (90, 120)]


@pytest.fixture(scope="module", params=LIMITS)
def resizing(request: pytest.FixtureRequest) -> TorchvisionResizing:
    return TorchvisionResizing(GeneralizedRCNNTransform(*request.param, MEAN, STD))


def torchvisions(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """The size of torchvision 0.29 (models/detection/transform.py:25-72, torch.nn.functional.interpolate)."""
    scale = min(min_size / min(height, width), max_size / max(height, width))
    return math.floor(height * scale), math.floor(width * scale)


def differences(resizing: TorchvisionResizing, shapes: list[tuple[int, int]]) -> list[tuple[int, int]]:
    limits = resizing.min_size, resizing.max_size
    return [
        shape
        for shape in shapes
        if tuple(resizing.sides(torch.tensor(shape)).tolist()) != torchvisions(*shape, *limits)
    ]


def test_squares_and_common_ratios_get_torchvisions_size(resizing: TorchvisionResizing) -> None:
    sides = range(1, 1200)
    shapes = [(side, side) for side in sides] + [(3 * side, 4 * side) for side in sides]
    shapes += [(16 * side, 9 * side) for side in range(1, 400)]
    assert not differences(resizing, shapes)
    exact = [shape for shape in shapes if torchvisions(*shape, 800, 1333)[0] == 799]
    assert exact  # float64 rounds down for some


@given(height=st.integers(1, 8191), width=st.integers(1, 8191))
def test_any_image_gets_torchvisions_size(height: int, width: int) -> None:
    assert not differences(TV, [(height, width)])


TV = TorchvisionResizing(GeneralizedRCNNTransform(800, 1333, MEAN, STD))


@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_are_torchvisions(shape: tuple[int, int]) -> None:
    transform = GeneralizedRCNNTransform(96, 160, MEAN, STD)
    image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wanted, _ = transform([image / 255])
    found = TorchvisionResizing(transform)(image[None])
    assert found.images.shape == wanted.tensors.shape
    torch.testing.assert_close(found.images, wanted.tensors, atol=2e-5, rtol=0)
    assert tuple(found.size.tolist()) == wanted.image_sizes[0]
    assert tuple(found.original.tolist()) == shape
    floats = TorchvisionResizing(transform)(image[None] / 255)
    torch.testing.assert_close(floats.images, found.images, atol=2e-5, rtol=0)


@given(height=st.integers(1, 4000), width=st.integers(1, 4000), limits=st.sampled_from([(800, 1333), (96, 160)]))
def test_any_image_gets_the_references_size(height: int, width: int, limits: tuple[int, int]) -> None:
    resizing = LegacyResizing(LegacyTransform(*limits, MEAN, STD))
    assert resizing.sides(height, width) == resized_size(height, width, *limits)


@pytest.mark.parametrize("fixed", [False, True], ids=["any size", "one size"])
@pytest.mark.parametrize("shape", [*SHAPES, (330, 90)])
def test_legacy_pixels_are_pillows(shape: tuple[int, int], fixed: bool) -> None:
    transform: Any = LegacyTransform(96, 160, MEAN, [1.0] * 3)
    image = torch.randint(0, 256, (3, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    wanted, _ = transform.eval()([image / 255])
    found = LegacyResizing(transform, shape if fixed else None)(image[None])
    assert found.images.shape == wanted.tensors.shape
    torch.testing.assert_close(found.images, wanted.tensors, atol=1e-3, rtol=0)
    assert tuple(found.size.tolist()) == wanted.image_sizes[0]
