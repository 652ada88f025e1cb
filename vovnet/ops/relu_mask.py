"""Pack which elements a ReLU let through into one bit per element, and compute gradients through a ReLU.

A bit is set if the element is not ``<= 0``. NaN therefore sets its bit, and its gradient passes, as in PyTorch's
``threshold_backward``.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Eight bytes of 0 or 1, read as one little-endian integer and multiplied by GATHER, leave their bits in the highest
# byte. A byte multiplied by SPREAD is copied into all eight bytes; SELECT then keeps another bit in each of them.
_GATHER = 0x0102040810204080
_SPREAD = 0x0101010101010101
_SELECT = 0x8040201008040201 - 2**64  # as a signed integer


def pack_positive(values: Tensor) -> Tensor:
    """Return a bit mask of the elements that are not ``<= 0``.

    Element ``e``, counted in memory order, is bit ``e % 8`` of byte ``e // 8``.

    Args:
        values: (N, C, H, W), contiguous or channels-last.

    Returns:
        uint8, ``ceil(numel / 8)`` bytes; the bits behind the last element are 0.
    """
    positive = memory_order(values).le(0).logical_not_()
    rest = -len(positive) % 8
    if rest:
        positive = torch.cat([positive, positive.new_zeros(rest)])
    return positive.view(torch.int64).mul(_GATHER).bitwise_right_shift_(56).to(torch.uint8)


def unpack(mask: Tensor, like: Tensor) -> Tensor:
    """Undo :func:`pack_positive`: return positive numbers and zeros with the shape, dtype and layout of ``like``."""
    spread = mask.to(torch.int64).mul_(_SPREAD).bitwise_and_(_SELECT)
    values = spread.view(torch.uint8)[: like.numel()].to(like.dtype)
    if is_channels_last(like):
        n, c, h, w = like.shape
        return values.view(n, h, w, c).permute(0, 3, 1, 2)
    return values.view(like.shape)


def relu_backward(grad: Tensor, output_or_mask: Tensor | None) -> Tensor:
    """Return the gradient of a ReLU's input.

    Args:
        grad: (N, C, H, W), the gradient of the ReLU's output.
        output_or_mask: the ReLU's output, or the mask that :func:`pack_positive` made of it in the memory order of
            ``grad``. None if there is no ReLU.
    """
    if output_or_mask is None:
        return grad
    if output_or_mask.dtype == torch.uint8:
        output_or_mask = unpack(output_or_mask, grad)
    return torch.ops.aten.threshold_backward(grad, output_or_mask, 0)


def is_channels_last(x: Tensor) -> bool:
    """True if ``x`` is channels-last and not also contiguous, as a map of one channel or one pixel is."""
    return not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def format_of(x: Tensor) -> torch.memory_format:
    """Return ``channels_last`` if ``x`` is, otherwise ``contiguous_format``."""
    return torch.channels_last if is_channels_last(x) else torch.contiguous_format


def match_strides(parameter: Tensor, gradient: Tensor) -> Tensor:
    """Return the gradient with its parameter's strides, which DistributedDataParallel's buckets expect.

    Strides of dimensions of size 1 count, too; 1×1 kernels have such dimensions. If only these differ, nothing is
    copied.
    """
    strides = torch.empty_like(parameter, device="meta").stride()
    if gradient.stride() == strides:
        return gradient
    dimensions = zip(parameter.shape, gradient.stride(), strides, strict=True)
    if all(size == 1 or own == wanted for size, own, wanted in dimensions):
        return gradient.as_strided(parameter.shape, strides)
    return torch.empty_strided(parameter.shape, strides, dtype=gradient.dtype, device=gradient.device).copy_(gradient)


def memory_order(x: Tensor) -> Tensor:
    """Return a flat view of a dense (N, C, H, W) tensor in memory order."""
    return (x.permute(0, 2, 3, 1) if is_channels_last(x) else x).reshape(-1)
