"""Check the operators' arguments. Each error names the argument, what was expected and what was given."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vovnet.errors import InputError

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
LARGEST = 2**63 - 1
"""Size in bytes of the largest tensor whose elements 64-bit offsets can address."""


def check_aggregate(inputs: Sequence[Tensor], weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> None:
    """Check the arguments of :func:`vovnet.ops.osa_aggregate`."""
    if not inputs:
        raise InputError("inputs: expected at least one feature map, got an empty list")
    first = inputs[0]
    for i, x in enumerate(inputs):
        _check_map(f"inputs[{i}]", x)
        if x.shape[:1] + x.shape[2:] != first.shape[:1] + first.shape[2:]:
            raise InputError(
                f"inputs[{i}]: expected (N, C, H, W) with N, H and W of inputs[0], {_shape(first)}, got {_shape(x)}"
            )
        _check_same(f"inputs[{i}]", x, first, "inputs[0]")
    channels = [x.shape[1] for x in inputs]
    if weight.dim() != 4 or weight.shape[1] != sum(channels) or weight.shape[2:] != (1, 1):
        total = f"{' + '.join(map(str, channels))} = " if len(channels) > 1 else ""
        raise InputError(
            f"weight: expected (out channels, {total}{sum(channels)}, 1, 1), the inputs' channels, got {_shape(weight)}"
        )
    _check_parameter("weight", weight, first)
    _check_vector("bias", bias, weight.shape[0], weight)
    if residual is not None:
        expected = (first.shape[0], weight.shape[0], *first.shape[2:])
        if tuple(residual.shape) != expected:
            raise InputError(f"residual: expected the output's shape {expected}, got {_shape(residual)}")
        _check_same("residual", residual, first, "inputs[0]")
    _check_range(first, (first.shape[0], weight.shape[0], *first.shape[2:]))


def check_conv(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> None:
    """Check the arguments of :func:`vovnet.ops.conv_affine_relu`."""
    _check_map("x", x)
    for name, values, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        if len(values) != 2 or min(values) < least:
            raise InputError(f"{name}: expected two integers of at least {least}, got {list(values)}")
    if groups < 1 or x.shape[1] % groups:
        raise InputError(f"groups: expected a divisor of x's {x.shape[1]} channels, got {groups}")
    fits = weight.dim() == 4 and weight.shape[1] * groups == x.shape[1] and weight.shape[0] % groups == 0
    if not fits or min(weight.shape) < 1:
        raise InputError(
            f"weight: expected (a multiple of groups, {x.shape[1]} channels of x / groups, height, width) with groups="
            f"{groups}, got {_shape(weight)}"
        )
    _check_parameter("weight", weight, x)
    _check_vector("scale", scale, weight.shape[0], weight)
    _check_vector("shift", shift, weight.shape[0], weight)
    for size, kernel, pad, step in zip(x.shape[2:], weight.shape[2:], padding, dilation, strict=True):
        if size + 2 * pad < step * (kernel - 1) + 1:
            raise InputError(
                f"x: expected a map at least as large as the kernel {weight.shape[2]}×{weight.shape[3]} with dilation "
                f"{list(dilation)}, got {x.shape[2]}×{x.shape[3]} with padding {list(padding)}"
            )
    _check_range(x, conv_shape(x, weight, stride, padding, dilation))


def conv_shape(
    x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> tuple[int, int, int, int]:
    """Return the shape (N, out channels, H', W') of a convolution's output."""
    height, width = (
        (size + 2 * pad - step * (kernel - 1) - 1) // jump + 1
        for size, kernel, jump, pad, step in zip(x.shape[2:], weight.shape[2:], stride, padding, dilation, strict=True)
    )
    return x.shape[0], weight.shape[0], height, width


def pair(name: str, value: int | Sequence[int]) -> list[int]:
    """Return a pair for height and width as a list; :func:`check_conv` checks its length and values."""
    whole = (int, torch.SymInt)
    values = [value, value] if isinstance(value, whole) else value
    if isinstance(values, str) or not isinstance(values, Sequence) or not all(isinstance(v, whole) for v in values):
        raise InputError(f"{name}: expected an integer or a pair for height and width, got {value!r}")
    return list(values)


def _check_map(name: str, x: Tensor) -> None:
    if x.dim() != 4:
        raise InputError(f"{name}: expected a feature map (N, C, H, W), got {x.dim()} dimensions, {_shape(x)}")
    if x.dtype not in DTYPES:
        kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise InputError(f"{name}: expected one of {kinds}, got {x.dtype}")
    _check_dense(name, x)


def _check_dense(name: str, x: Tensor) -> None:
    if x.layout != torch.strided:
        raise InputError(f"{name}: expected a dense tensor, got {x.layout}")


def _check_same(name: str, x: Tensor, other: Tensor, others_name: str) -> None:
    if x.dtype != other.dtype:
        raise InputError(f"{name}: expected {other.dtype} like {others_name}, got {x.dtype}")
    if x.device != other.device:
        raise InputError(f"{name}: expected it on {other.device} like {others_name}, got {x.device}")
    _check_dense(name, x)


def _check_parameter(name: str, value: Tensor, x: Tensor) -> None:
    """Check that a parameter has the map's dtype, or float32 with a map of lower precision."""
    if value.device != x.device:
        raise InputError(f"{name}: expected it on {x.device} like the feature maps, got {value.device}")
    lower = x.dtype in (torch.bfloat16, torch.float16)
    if value.dtype != x.dtype and not (lower and value.dtype == torch.float32):
        raise InputError(f"{name}: expected {x.dtype}{' or torch.float32' if lower else ''}, got {value.dtype}")
    _check_dense(name, value)


def _check_vector(name: str, value: Tensor | None, channels: int, weight: Tensor) -> None:
    if value is None:
        return
    if tuple(value.shape) != (channels,):
        raise InputError(f"{name}: expected ({channels},), one number per output channel, got {_shape(value)}")
    _check_same(name, value, weight, "weight")


def _check_range(x: Tensor, shape: tuple[int, int, int, int]) -> None:
    size = math.prod(shape) * x.element_size()
    if size > LARGEST:
        raise InputError(f"the result: expected at most {LARGEST} bytes, got {size} for {shape} of {x.dtype}")


def _shape(x: Tensor) -> tuple[int, ...]:
    return tuple(x.shape)
