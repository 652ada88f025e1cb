"""Calls of ``vovnet::packed_conv`` for the tests of the compiled kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from osa_reference import draw
from torch import Tensor

from vovnet.ops import inference  # noqa: F401  (the operators' schemas)
from vovnet.ops.algorithms import BFLOAT16, DIRECT, FLOAT_PRODUCTS, WINOGRAD_2, WINOGRAD_4, WINOGRAD_STRIDED

METHODS = {"direct": DIRECT, "F(2x2)": WINOGRAD_2, "F(4x4)": WINOGRAD_4, "F(3x3) of stride 2": WINOGRAD_STRIDED}


def usual_stride(method: int) -> tuple[int, int]:
    """Return the stride of the convolutions that the method is for."""
    return (2, 2) if method & ~(BFLOAT16 | FLOAT_PRODUCTS) == WINOGRAD_STRIDED else (1, 1)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def some_map(*shape: int, seed: int = 0) -> Tensor:
    """Return normally distributed numbers, float32, channels-last."""
    return channels_last(draw(shape, seed, torch.float32))


def some_weight(*shape: int, seed: int = 1) -> Tensor:
    """Return a weight that preserves the variance of a map."""
    return draw(shape, seed, torch.float32) / math.sqrt(math.prod(shape[1:]))


def fits(method: int, weight: Tensor, stride: Sequence[int] | None = None) -> bool:
    """True if the method can compute such a convolution; the default stride is the method's usual one."""
    if method & ~BFLOAT16 == DIRECT:
        return True
    square = tuple(weight.shape[2:]) == (3, 3) and stride in (None, usual_stride(method))
    return weight.shape[1] >= 16 and square


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    stride: Sequence[int] | None = None,
    padding: Sequence[int] | None = None,
    relu: bool = False,
    method: int = DIRECT,
) -> Tensor:
    """Convolve with the compiled kernels. The default padding is half the kernel, the default stride the usual one."""
    ready = torch.ops.vovnet.pack_conv(weight, method)
    if padding is None:
        padding = [size // 2 for size in weight.shape[2:]]
    stride = usual_stride(method) if stride is None else stride
    out: Tensor = torch.ops.vovnet.packed_conv(x, weight, bias, residual, ready, stride, padding, relu, method)
    return out
