"""The max-pool that keeps one byte per output element computes exactly what PyTorch's does."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from osa_reference import LAYOUTS, draw, kept_bytes, leaf
from torch import Tensor, nn

from vovnet.memory.layers import MemoryEfficientMaxPool2d

WINDOWS: dict[str, dict[str, Any]] = {
    "VoVNet's": {"kernel_size": 3, "stride": 2, "ceil_mode": True},
    "dilated VoVNet's": {"kernel_size": 3, "stride": 1, "padding": 1, "ceil_mode": True},
    "ResNet's": {"kernel_size": 3, "stride": 2, "padding": 1},
    "2x2": {"kernel_size": 2},
    "uneven": {"kernel_size": (2, 3), "stride": (3, 1), "padding": (1, 0)},
    "uneven, ceil": {"kernel_size": (3, 2), "stride": (2, 3), "padding": (0, 1), "ceil_mode": True},
    "wide steps": {"kernel_size": 2, "stride": 5, "ceil_mode": True},
    "one": {"kernel_size": 1, "stride": 2, "ceil_mode": True},
    "large": {"kernel_size": (15, 17), "stride": 1, "padding": (7, 8)},
}
SHAPES = [(2, 3, 17, 20), (2, 3, 16, 15), (1, 4, 3, 3), (3, 1, 9, 4), (0, 3, 8, 8)]


def gradients(out: Tensor, wanted: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out, wanted, draw(out.shape, 20, out.dtype))


def values(kind: str, shape: tuple[int, ...]) -> Tensor:
    if kind == "random":
        return draw(shape, 0)
    if kind == "ties":
        return draw(shape, 0).round()
    if kind == "constant":
        return torch.zeros(shape, dtype=torch.float64)
    special = {"-inf": -math.inf, "NaN": math.nan, "inf": math.inf}[kind]
    x = draw(shape, 0)
    x[draw(shape, 1) > 0] = special
    x[:, :1] = special  # a whole channel
    return x


def strides(x: Tensor) -> list[int]:
    """Return the strides of dimensions larger than 1."""
    return [stride for stride, size in zip(x.stride(), x.shape, strict=True) if size > 1] if x.numel() else []


def outcome(function: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor | None, str]:
    """Return the output, or the message of the error."""
    try:
        return function(x), ""
    except RuntimeError as error:
        return None, str(error)


def pools(x: Tensor, window: dict[str, Any]) -> None:
    """Check that output, gradient and layouts are exactly PyTorch's, or that both raise the same error."""
    plain, own = nn.MaxPool2d(**window), MemoryEfficientMaxPool2d(**window)
    expected, message = outcome(plain, x)
    out, ours = outcome(own, x)
    assert ours == message
    if out is None or expected is None:
        assert out is expected
        return
    assert torch.equal(out.nan_to_num(7), expected.nan_to_num(7))
    assert strides(out) == strides(expected)
    one, other = gradients(out, [x])[0], gradients(expected, [x])[0]
    assert torch.equal(one, other)
    assert strides(one) == strides(other)


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
@pytest.mark.parametrize("kind", ["random", "ties", "constant", "-inf", "inf", "NaN"])
@pytest.mark.parametrize("window", WINDOWS)
def test_max_pool(window: str, kind: str, layout: str) -> None:
    for shape in SHAPES:
        pools(leaf(values(kind, shape), layout), WINDOWS[window])


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_max_pool_of_any_tensor(layout: str, dtype: torch.dtype) -> None:
    for window in WINDOWS.values():
        pools(leaf(draw((2, 3, 11, 8), 0, dtype), layout), window)


@pytest.mark.parametrize("shape", [(1, 2, 1, 9), (1, 2, 9, 1), (1, 2, 2, 2), (1, 2, 1, 1)])
@pytest.mark.parametrize("window", WINDOWS)
def test_max_pool_of_maps_narrower_than_the_window(window: str, shape: tuple[int, ...]) -> None:
    for layout in ("contiguous", "channels-last"):
        pools(leaf(values("ties", shape), layout), WINDOWS[window])


@pytest.mark.parametrize(
    ("window", "shape"),
    [
        ({"kernel_size": 2, "dilation": 2}, (1, 2, 9, 9)),
        ({"kernel_size": 16, "stride": 1}, (1, 2, 20, 20)),  # 256 places
        ({"kernel_size": 3, "stride": 2}, (2, 9, 9)),
        ({"kernel_size": 3, "padding": 2}, (1, 2, 9, 9)),  # refused
    ],
)
def test_other_max_pools_are_pytorchs(window: dict[str, Any], shape: tuple[int, ...]) -> None:
    pools(leaf(draw(shape, 0)), window)


def test_max_pool_with_indices_is_pytorchs() -> None:
    x = draw((1, 2, 9, 9), 0)
    own, plain = MemoryEfficientMaxPool2d(3, return_indices=True)(x), nn.MaxPool2d(3, return_indices=True)(x)
    assert all(torch.equal(one, other) for one, other in zip(own, plain, strict=True))


def test_max_pool_keeps_a_byte_an_output() -> None:
    x = leaf(draw((2, 3, 17, 20), 0))
    with kept_bytes() as kept:
        out = MemoryEfficientMaxPool2d(3, 2, ceil_mode=True)(x)
    assert sum(kept.values()) == out.numel()
    with torch.no_grad(), kept_bytes() as kept:
        MemoryEfficientMaxPool2d(3, 2)(x)
    assert not kept


def test_max_pools_gradient_does_not_read_the_input() -> None:
    x = leaf(draw((1, 2, 9, 9), 0))
    y = x * 1
    out = MemoryEfficientMaxPool2d(3, 2)(y)
    (expected,) = gradients(nn.MaxPool2d(3, 2)(x), [x])
    y.detach().zero_()
    assert torch.equal(gradients(out, [x])[0], expected)
