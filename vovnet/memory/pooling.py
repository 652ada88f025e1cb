"""A max-pool that keeps a byte an output for its backward pass, and not its input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from vovnet.ops.relu_mask import format_of


def max_pool(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool
) -> Tensor:
    """``max_pool2d``, which keeps a byte an output: where in its window the largest value is (autograd's takes eight).

    Args:
        x: (N, C, H, W).
        kernel: height and width of the window, at most 255 places.
        stride: of the window.
        padding: around the map.
        ceil_mode: windows may begin inside and end outside.
    """
    keeps = x.requires_grad and torch.is_grad_enabled()
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or not keeps:
        return F.max_pool2d(x, list(kernel), list(stride), list(padding), 1, ceil_mode)
    out: Tensor = _MaxPool.apply(x, list(kernel), list(stride), list(padding), ceil_mode)
    return out


class _MaxPool(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, kernel: list[int], stride: list[int], padding: list[int], ceil_mode: bool
    ) -> Tensor:
        out, indices = F.max_pool2d(x, kernel, stride, padding, 1, ceil_mode, return_indices=True)
        ctx.arguments = kernel, stride, padding, ceil_mode
        ctx.shape, ctx.layout = x.shape, format_of(x)
        height, width = x.shape[2:]
        if height * width < 2**31:  # half the bytes to go through
            indices = indices.to(torch.int32)
        # A place's row and column in its window, counted through the window.
        first = _first_places(out, stride, padding, kernel[1]).to(indices.dtype)
        rows = indices.div(width, rounding_mode="floor")
        ctx.save_for_backward(indices.sub_(rows.mul_(width - kernel[1])).sub_(first).to(torch.uint8))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (places,) = ctx.saved_tensors
        kernel, stride, padding, ceil_mode = ctx.arguments
        width = ctx.shape[3]
        rows = places.div(kernel[1], rounding_mode="floor")  # bytes
        indices = places.to(torch.int64).add_(rows.to(torch.int64), alpha=width - kernel[1])
        indices.add_(_first_places(grad, stride, padding, width))
        # Of the input only its shape and layout are read, so that no memory is touched for it.
        like = torch.empty(ctx.shape, dtype=grad.dtype, device=grad.device, memory_format=ctx.layout)
        result = torch.ops.aten.max_pool2d_with_indices_backward(
            grad.contiguous(memory_format=ctx.layout), like, kernel, stride, padding, [1, 1], ceil_mode, indices
        )
        return result, None, None, None, None


def _first_places(out: Tensor, stride: Sequence[int], padding: Sequence[int], width: int) -> Tensor:
    """(H', W') where each window begins, counted through rows of ``width``."""
    rows = torch.arange(out.shape[2], device=out.device) * stride[0] - padding[0]
    columns = torch.arange(out.shape[3], device=out.device) * stride[1] - padding[1]
    return rows[:, None] * width + columns
