"""Calls of ``vovnet::packed_conv`` with what they need, for the tests of the compiled kernels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from osa_reference import draw
from torch import Tensor

from vovnet.ops import inference  # noqa: F401  (the operators' schemas)
from vovnet.ops.algorithms import BFLOAT16, DIRECT, FLOAT_PRODUCTS, STRASSEN, WINOGRAD_2, WINOGRAD_4, WINOGRAD_STRIDED

METHODS = {
    "direct": DIRECT,
    "Strassen": STRASSEN,
    "F(2x2)": WINOGRAD_2,
    "F(4x4)": WINOGRAD_4,
    "F(3x3) of stride 2": WINOGRAD_STRIDED,
}


def usual_stride(method: int) -> tuple[int, int]:
    """Of the convolutions that the method is for, or 1."""
    return (2, 2) if method & ~(BFLOAT16 | FLOAT_PRODUCTS) == WINOGRAD_STRIDED else (1, 1)


def channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def some_map(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers, float32, channels-last."""
    return channels_last(draw(shape, seed, torch.float32))


def some_weight(*shape: int, seed: int = 1) -> Tensor:
    """Of a variance that keeps a map's."""
    return draw(shape, seed, torch.float32) / math.sqrt(math.prod(shape[1:]))


def fits(method: int, weight: Tensor, stride: Sequence[int] | None = None) -> bool:
    """Whether the method can compute such a convolution at all; the stride is the usual one unless it is given."""
    if method & ~BFLOAT16 == DIRECT:
        return True
    square = tuple(weight.shape[2:]) == (3, 3) and stride in (None, usual_stride(method))
    return weight.shape[1] >= 16 and (method & ~BFLOAT16 == STRASSEN or square)


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
    """By the compiled kernels; the padding is half the kernel and the stride the usual one unless they are given."""
    ready = torch.ops.vovnet.pack_conv(weight, method)
    if padding is None:
        padding = [size // 2 for size in weight.shape[2:]]
    stride = usual_stride(method) if stride is None else stride
    out: Tensor = torch.ops.vovnet.packed_conv(x, weight, bias, residual, ready, stride, padding, relu, method)
    return out
