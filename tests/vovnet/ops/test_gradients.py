"""The gradients of convolutions over maps of 2 GiB, computed in parts, equal those computed at once."""

from __future__ import annotations

import pytest
import torch
from osa_reference import LAYOUTS, draw, leaf
from torch.autograd import gradcheck

from vovnet.modules import Geometry
from vovnet.ops import conv_affine_relu, gradients, osa_aggregate
from vovnet.ops.gradients import convolution_backward

GEOMETRY = Geometry([2, 1], [1, 0], [1, 1], 2)
IMAGE = 4 * 6 * 5 * 8  # bytes of one image of x in float64


def arguments(images: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    x, weight = draw((images, 4, 6, 5), 0, torch.float64), draw((6, 2, 3, 3), 1, torch.float64)
    return draw(torch.conv2d(x, weight, None, *GEOMETRY).shape, 2, torch.float64), x, weight


@pytest.mark.parametrize("limit", [1, IMAGE, IMAGE + 1, 2 * IMAGE + 1, 5 * IMAGE])
@pytest.mark.parametrize("wants_x", [True, False])
def test_in_parts_as_at_once(monkeypatch, limit, wants_x):
    g, x, weight = arguments(5)
    whole = convolution_backward(g, x, weight, GEOMETRY, wants_x, True)
    calls = []
    backward = gradients._backward
    monkeypatch.setattr(gradients, "_LIMIT", limit)
    monkeypatch.setattr(gradients, "_backward", lambda g, x, *rest: calls.append(len(x)) or backward(g, x, *rest))
    parts = convolution_backward(g, x, weight, GEOMETRY, wants_x, True)
    assert len(calls) > 1
    per_call = max(1, (limit - 1) // IMAGE)
    assert max(calls[wants_x:]) <= per_call
    assert (parts[0] is None) == (not wants_x)
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_map_gradient_alone_is_not_split(monkeypatch):
    g, x, weight = arguments(3)
    monkeypatch.setattr(gradients, "_LIMIT", 1)
    d_x, d_weight = convolution_backward(g, x, weight, GEOMETRY, True, False)
    assert d_weight is None
    assert d_x is not None
    assert d_x.shape == x.shape


@pytest.mark.parametrize("layout", LAYOUTS)
def test_operators_compute_in_parts(monkeypatch, layout):
    monkeypatch.setattr(gradients, "_LIMIT", 1)
    x, other = (leaf(draw((3, 2, 3, 4), seed, torch.float64), layout) for seed in (0, 1))
    weight, shift = leaf(draw((3, 2, 3, 3), 2, torch.float64)), leaf(draw((3,), 3, torch.float64))
    assert gradcheck(lambda *t: conv_affine_relu(t[0], t[1], None, t[2], 1, 1), (x, weight, shift))
    wide = leaf(draw((3, 4, 1, 1), 4, torch.float64))
    assert gradcheck(lambda x, y, w, b: osa_aggregate([x, y], w, b), (x, other, wide, shift))


@pytest.mark.slow
def test_maps_of_2_gib():
    """In float32, channels-last, as a detector trains; oneDNN's reference implementation needs minutes for it."""
    x = torch.ones(8, 64, 1024, 1024).contiguous(memory_format=torch.channels_last)
    g = torch.ones(8, 4, 1024, 1024).contiguous(memory_format=torch.channels_last)
    weight = torch.zeros(4, 64, 1, 1).contiguous(memory_format=torch.channels_last)
    _, d_weight = convolution_backward(g, x, weight, Geometry([1, 1], [0, 0], [1, 1], 1), False, True)
    torch.testing.assert_close(d_weight, torch.full_like(weight, 8.0 * 1024 * 1024))
