"""A convolution with a frozen norm folded into it, and a ReLU. Autograd keeps only its input and its output.

Separate layers keep three maps and pass over the output three more times. The folded weight is computed again in the
backward pass, because keeping it would double the memory of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import conv_backward_flop, conv_flop_count, register_flop_formula

from vovnet.modules import Geometry
from vovnet.ops import cuda
from vovnet.ops.arguments import check_conv, conv_shape, pair
from vovnet.ops.gradients import convolution_backward
from vovnet.ops.registration import AutogradContext, refuse_second_derivative, refuse_vmap, register_autocast
from vovnet.ops.relu_mask import is_channels_last, match_strides

_Geometry = tuple[Sequence[int], Sequence[int], Sequence[int], int]
"""Stride, padding, dilation and groups."""

Pair = int | Sequence[int]


def conv_affine_relu(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    stride: Pair = 1,
    padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
    relu: bool = True,
) -> Tensor:
    """Return ``relu(conv2d(x, weight) · scale + shift)``, computed as a convolution with ``weight · scale``.

    Args:
        x: (N, C, H, W), floating-point. Maps that are neither contiguous nor channels-last are copied.
        weight: (out channels, C / groups, height, width), of the dtype of ``x``; or float32 with float16 or bfloat16.
        scale: (out channels,), of the weight's dtype: ``γ / √(variance + ε)`` of a frozen norm. None means 1.
        shift: (out channels,), of the weight's dtype: ``β - mean · scale``. None means 0.
        stride: an integer, or a pair for height and width.
        padding: zeros added on each side; an integer or a pair.
        dilation: distance of the kernel's taps; an integer or a pair.
        groups: number of groups of channels.
        relu: apply a ReLU.

    Returns:
        (N, out channels, H', W'), channels-last if ``x`` or the weight is.

    Raises:
        InputError: a shape, dtype, device or number does not fit; the message names the argument.
    """
    pairs = (pair("stride", stride), pair("padding", padding), pair("dilation", dilation))
    out: Tensor = torch.ops.vovnet.conv_affine_relu(x, weight, scale, shift, *pairs, groups, relu)
    return out


@torch.library.custom_op("vovnet::conv_affine_relu", mutates_args=())
def _conv(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    relu: bool,
) -> Tensor:
    check_conv(x, weight, scale, shift, stride, padding, dilation, groups)
    layout = _layout(x, weight)
    x, folded = x.contiguous(memory_format=layout), fold(weight, scale, x.dtype, layout)
    bias = None if shift is None else shift.to(x.dtype)
    geometry = (stride, padding, dilation, groups)
    if relu and bias is not None and _has_fused_cudnn(x):
        return torch.cudnn_convolution_relu(x, folded, bias, *geometry).contiguous(memory_format=layout)
    out = F.conv2d(x, folded, bias, *geometry).contiguous(memory_format=layout)
    return out.relu_() if relu else out


@_conv.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor | None, shift: Tensor | None, *rest: *tuple[*_Geometry, bool]) -> Tensor:
    stride, padding, dilation, groups, _ = rest
    check_conv(x, weight, scale, shift, stride, padding, dilation, groups)
    shape = conv_shape(x, weight, stride, padding, dilation)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=_layout(x, weight))


def fold(weight: Tensor, scale: Tensor | None, dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
    """Return ``weight · scale`` in the maps' dtype and layout."""
    folded = weight if scale is None else weight * scale[:, None, None, None]
    return folded.to(dtype).contiguous(memory_format=layout)


def _layout(x: Tensor, weight: Tensor) -> torch.memory_format:
    """Return channels-last if the map or the weight is, as PyTorch's own convolutions do."""
    last = is_channels_last(x) or is_channels_last(weight)
    return torch.channels_last if last else torch.contiguous_format


def _has_fused_cudnn(x: Tensor) -> bool:
    return x.is_cuda and torch.backends.cudnn.enabled and x.dtype in (torch.float16, torch.float32) and x.numel() > 0


@torch.library.custom_op("vovnet::conv_affine_relu_backward", mutates_args=())
def _conv_backward(
    grad: Tensor,
    output_or_mask: Tensor | None,
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of the map, the weight, the scale and the shift; an empty tensor for each not wanted.

    ``output_or_mask`` is an argument of :func:`vovnet.ops.relu_mask.relu_backward`.
    """
    wants_x, wants_weight, wants_scale, wants_shift = wanted
    layout = _layout(x, weight)
    g, total = cuda.gradient_before_relu(grad.contiguous(memory_format=layout), output_or_mask, wants_shift)
    x, folded = x.contiguous(memory_format=layout), fold(weight, scale, x.dtype, layout)
    geometry = Geometry(list(stride), list(padding), list(dilation), groups)
    d_x, d_folded = convolution_backward(g, x, folded, geometry, wants_x, wants_weight or wants_scale)
    none = weight.new_empty(0)
    d_weight, d_scale, d_shift = none, none.clone(), none.clone()
    if d_folded is not None:
        d_folded = d_folded.to(weight.dtype)
        if wants_scale:
            d_scale = (d_folded * weight).sum((1, 2, 3))
        if wants_weight:
            d_weight = d_folded.mul_(scale[:, None, None, None]) if scale is not None else d_folded
            d_weight = match_strides(weight, d_weight)
    if wants_shift:
        d_shift = g.sum((0, 2, 3), dtype=weight.dtype) if total is None else total.to(weight.dtype)
    return x.new_empty(0) if d_x is None else d_x, d_weight, d_scale, d_shift


@_conv_backward.register_fake
def _(
    grad: Tensor,
    output_or_mask: Tensor | None,
    x: Tensor,
    weight: Tensor,
    *rest: *tuple[*tuple[object, ...], list[bool]],
) -> tuple[Tensor, ...]:
    layout, channels, wanted = _layout(x, weight), weight.shape[0], rest[-1]
    return (
        torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout) if wanted[0] else x.new_empty(0),
        torch.empty_like(weight) if wanted[1] else weight.new_empty(0),
        weight.new_empty(channels if wanted[2] else 0),
        weight.new_empty(channels if wanted[3] else 0),
    )


class _Context(AutogradContext, Protocol):
    geometry: _Geometry
    needs_input_grad: tuple[bool, ...]


def _save(
    ctx: _Context,
    inputs: tuple[Tensor, Tensor, Tensor | None, Tensor | None, Sequence[int], Sequence[int], Sequence[int], int, bool],
    output: Tensor,
) -> None:
    x, weight, scale, _, stride, padding, dilation, groups, relu = inputs
    ctx.geometry = (stride, padding, dilation, groups)
    ctx.save_for_backward(x, weight, scale, output if relu else None)


def _differentiate(ctx: _Context, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, scale, output = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:4])
    gradients = torch.ops.vovnet.conv_affine_relu_backward(grad, output, x, weight, scale, *ctx.geometry, wanted)
    return *(g if want else None for g, want in zip(gradients, wanted, strict=True)), None, None, None, None, None


_conv.register_autograd(_differentiate, setup_context=_save)
register_autocast("conv_affine_relu", lambda cast, x, *rest: (cast(x), *rest))
for _op in (_conv, _conv_backward):
    refuse_vmap(_op)
refuse_second_derivative(_conv_backward)


@register_flop_formula(torch.ops.vovnet.conv_affine_relu)
def _(x: list[int], weight: list[int], *_: object, out_shape: list[int], **__: object) -> int:
    """Count what ``torch.utils.flop_counter`` counts for the convolution alone; tensors come as shapes."""
    count: int = conv_flop_count(x, weight, out_shape)
    return count


@register_flop_formula(torch.ops.vovnet.conv_affine_relu_backward)
def _(
    grad: list[int],
    output_or_mask: list[int] | None,
    x: list[int],
    weight: list[int],
    scale: list[int] | None,
    *rest: *tuple[*_Geometry, Sequence[bool]],
    **__: object,
) -> int:
    stride, padding, dilation, groups, (wants_x, wants_weight, wants_scale, _) = rest
    wanted = [wants_x, wants_weight or wants_scale]
    geometry = (stride, padding, dilation, False, [0, 0], groups)
    count: int = conv_backward_flop(grad, x, weight, None, *geometry, wanted, out_val=(x, weight))  # type: ignore[call-arg]
    return count
