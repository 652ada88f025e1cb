"""A max-pool that keeps one byte per output element for its backward pass, and not its input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from vovnet.ops.registration import AutogradContext
from vovnet.ops.relu_mask import format_of


def max_pool(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool
) -> Tensor:
    """Compute ``max_pool2d``; keep one byte per output element, the place of its maximum, where autograd keeps eight.

    ``x`` is (N, C, H, W); pairs are (height, width). The window has at most 255 places.
    """
    needs_grad = x.requires_grad and torch.is_grad_enabled()
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not needs_grad:
        return F.max_pool2d(x, list(kernel), list(stride), list(padding), 1, ceil_mode)
    out: Tensor = _MaxPool.apply(x, list(kernel), list(stride), list(padding), ceil_mode)
    return out


class _Context(AutogradContext, Protocol):
    arguments: tuple[list[int], list[int], list[int], bool]  # kernel, stride, padding and ceil mode
    shape: torch.Size
    layout: torch.memory_format

    @property
    def saved_tensors(self) -> tuple[Tensor]:
        """The maxima's places."""
        ...


class _MaxPool(Function):
    @staticmethod
    def forward(
        ctx: _Context, x: Tensor, kernel: list[int], stride: list[int], padding: list[int], ceil_mode: bool
    ) -> Tensor:
        out, indices = F.max_pool2d(x, kernel, stride, padding, 1, ceil_mode, return_indices=True)
        ctx.arguments = kernel, stride, padding, ceil_mode
        ctx.shape, ctx.layout = x.shape, format_of(x)
        height, width = x.shape[2:]
        if height * width < 2**31:  # half the memory traffic below
            indices = indices.to(torch.int32)
        # A place is row · kernel width + column, both counted from the window's first element.
        first = _first_places(out, stride, padding, kernel[1]).to(indices.dtype)
        rows = indices.div(width, rounding_mode="floor")
        ctx.save_for_backward(indices.sub_(rows.mul_(width - kernel[1])).sub_(first).to(torch.uint8))
        return out

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
        (places,) = ctx.saved_tensors
        kernel, stride, padding, ceil_mode = ctx.arguments
        width = ctx.shape[3]
        rows = places.div(kernel[1], rounding_mode="floor")
        indices = places.to(torch.int64).add_(rows.to(torch.int64), alpha=width - kernel[1])
        indices.add_(_first_places(grad, stride, padding, width))
        # Only the shape and layout of this argument are read, so its memory is never touched.
        like = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.layout)
        result = torch.ops.aten.max_pool2d_with_indices_backward(
            grad.contiguous(memory_format=ctx.layout), like, kernel, stride, padding, [1, 1], ceil_mode, indices
        )
        return result, None, None, None, None


def _first_places(out: Tensor, stride: Sequence[int], padding: Sequence[int], width: int) -> Tensor:
    """Return (H', W'): the flat index of each window's first element in a map of this width."""
    rows = torch.arange(out.shape[2], device=out.device) * stride[0] - padding[0]
    columns = torch.arange(out.shape[3], device=out.device) * stride[1] - padding[1]
    return rows[:, None] * width + columns
