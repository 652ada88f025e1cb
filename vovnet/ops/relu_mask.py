"""Which elements a ReLU let through, a bit each, and gradients through it.

A bit says that the element is not ``<= 0``: as in PyTorch's ``threshold_backward``, the gradient passes NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Eight bytes of 0 or 1, read as one integer (the first byte lowest), times GATHER have them as the highest byte's bits;
# a byte times SPREAD stands in all eight, of which SELECT keeps a bit each.
_GATHER = 0x0102040810204080
_SPREAD = 0x0101010101010101
_SELECT = 0x8040201008040201 - 2**64  # as the signed integer with these bits


def pack_positive(values: Tensor) -> Tensor:
    """Bit ``e % 8`` of byte ``e // 8``: whether element ``e``, in the order of the memory, is not ``<= 0``.

    Args:
        values: (N, C, H, W), contiguous or channels-last.

    Returns:
        uint8, of ``ceil(numel / 8)`` bytes; the bits behind the last element are 0.
    """
    kept = memory_order(values).le(0).logical_not_()
    rest = -len(kept) % 8
    if rest:
        kept = torch.cat([kept, kept.new_zeros(rest)])
    return kept.view(torch.int64).mul(_GATHER).bitwise_right_shift_(56).to(torch.uint8)


def unpack(bits: Tensor, like: Tensor) -> Tensor:
    """What :func:`pack_positive` packed as numbers above 0, or 0, in the type, shape and layout of ``like``."""
    spread = bits.to(torch.int64).mul_(_SPREAD).bitwise_and_(_SELECT)
    kept = spread.view(torch.uint8)[: like.numel()].to(like.dtype)
    if is_channels_last(like):
        n, c, h, w = like.shape
        return kept.view(n, h, w, c).permute(0, 3, 1, 2)
    return kept.view(like.shape)


def relu_backward(grad: Tensor, kept: Tensor | None) -> Tensor:
    """The gradient before a ReLU.

    Args:
        grad: (N, C, H, W), behind it.
        kept: its output, or the bits of :func:`pack_positive` of it in the memory order of ``grad``; None: no ReLU.
    """
    if kept is None:
        return grad
    if kept.dtype == torch.uint8:
        kept = unpack(kept, grad)
    return torch.ops.aten.threshold_backward(grad, kept, 0)


def is_channels_last(x: Tensor) -> bool:
    """Channels innermost, and not also in the plain order (a single channel, or a map of one pixel)."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def format_of(x: Tensor) -> torch.memory_format:
    """Channels-last where the tensor is, else contiguous."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


def in_strides_of(parameter: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in its parameter's layout, as DistributedDataParallel's buckets expect it.

    That goes for the strides of dimensions of size 1, too, which 1×1 kernels have: they alone need no copy.
    """
    strides = torch.empty_like(parameter, device="meta").stride()
    if gradient.stride() == strides:
        return gradient
    named = zip(parameter.shape, gradient.stride(), strides, strict=True)
    if all(size == 1 or own == wanted for size, own, wanted in named):
        return gradient.as_strided(parameter.shape, strides)
    return torch.empty_strided(parameter.shape, strides, dtype=gradient.dtype, device=gradient.device).copy_(gradient)


def memory_order(x: Tensor) -> Tensor:
    """(N, C, H, W) dense → (numel,) in the order of the memory, a view."""
    return (x.permute(0, 2, 3, 1) if is_channels_last(x) else x).reshape(-1)
