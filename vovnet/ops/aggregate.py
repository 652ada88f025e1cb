"""The 1×1 aggregation of an OSA block over a list of feature maps, without concatenating them.

The operator ``vovnet::osa_aggregate`` returns the output and, for the backward pass, a mask with one bit per element
that says what the ReLU let through. Autograd keeps the mask, not the output. ``vovnet::osa_aggregate_backward``
computes the gradient. Both are defined here in plain PyTorch, which runs on the CPU; CUDA tensors take the kernels of
``csrc/cuda`` if :mod:`vovnet.ops.build.loader` can load them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, register_flop_formula

from vovnet.ops import cuda, onednn
from vovnet.ops.arguments import check_aggregate
from vovnet.ops.registration import AutogradContext, refuse_second_derivative, refuse_vmap, register_autocast
from vovnet.ops.relu_mask import format_of, match_strides, pack_positive, relu_backward


def osa_aggregate(
    inputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = True,
) -> Tensor:
    """Return ``relu(Σᵢ conv1x1(xᵢ, Wᵢ) + bias) + residual``, where ``Wᵢ`` are the column blocks of one weight.

    This equals ``F.conv2d(torch.cat(inputs, 1), weight, bias)``, followed by the ReLU and the sum with the residual.
    Autograd keeps the inputs, which the neighbouring convolutions keep anyway, and one bit per element of the output.

    Args:
        inputs: one or more maps (N, Cᵢ, H, W) of one floating-point dtype on one device. The same tensor may occur
            twice. Contiguous and channels-last maps are read in place, others are copied.
        weight: (out channels, Σ Cᵢ, 1, 1), of the inputs' dtype; or float32 with float16 or bfloat16 inputs.
        bias: (out channels,), of the weight's dtype.
        residual: (N, out channels, H, W), of the inputs' dtype; added **after** the ReLU, like VoVNet's identity.
        relu: apply a ReLU.

    Returns:
        (N, out channels, H, W), in the layout of the first input.

    Raises:
        InputError: a shape, dtype or device does not fit; the message names the argument.
    """
    differentiable = [
        value for value in (*inputs, weight, bias, residual) if isinstance(value, Tensor) and value.requires_grad
    ]
    needs_mask = relu and torch.is_grad_enabled() and len(differentiable) > 0  # PyTorch 2.8 cannot compile bool(list)
    out: Tensor = torch.ops.vovnet.osa_aggregate(list(inputs), weight, bias, residual, relu, needs_mask)[0]
    return out


@torch.library.custom_op("vovnet::osa_aggregate", mutates_args=())
def _aggregate(
    inputs: Sequence[Tensor], weight: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool, keep_mask: bool
) -> tuple[Tensor, Tensor]:
    """Return the output and the mask of what the ReLU let through (:mod:`vovnet.ops.relu_mask`), which may be empty."""
    check_aggregate(inputs, weight, bias, residual)
    if cuda.supported(inputs, weight):
        return cuda.aggregate_forward(inputs, weight, bias, residual, relu, keep_mask)
    inputs = dense(inputs)
    out = _sum(inputs, weight, bias)
    mask = weight.new_empty(0, dtype=torch.uint8)
    if relu:
        out.relu_()
        if keep_mask:
            mask = pack_positive(out)
    if residual is not None:
        out += residual
    return out, mask


@_aggregate.register_fake
def _(
    inputs: Sequence[Tensor], weight: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool, keep_mask: bool
) -> tuple[Tensor, Tensor]:
    check_aggregate(inputs, weight, bias, residual)
    out = _empty_output(inputs[0], weight.shape[0])
    mask_bytes = (out.numel() + 7) // 8 if relu and keep_mask else 0
    return out, weight.new_empty(mask_bytes, dtype=torch.uint8)


def dense(inputs: Sequence[Tensor]) -> list[Tensor]:
    """Return the maps in the layout of the first one, contiguous or channels-last."""
    layout = format_of(inputs[0])
    return [x.contiguous(memory_format=layout) for x in inputs]


def _empty_output(x: Tensor, out_channels: int) -> Tensor:
    n, _, h, w = x.shape
    return torch.empty((n, out_channels, h, w), dtype=x.dtype, device=x.device, memory_format=format_of(x))


def _rows(x: Tensor, layout: torch.memory_format) -> list[Tensor]:
    """Return a map that is dense in ``layout`` as matrices (pixels, C) that share its memory.

    A channels-last map is one matrix (N·H·W, C), a contiguous map has one (H·W, C) per image. The layout is an argument
    because a map of one channel is dense in both.
    """
    n, c, h, w = x.shape
    if layout == torch.channels_last:
        return [x.permute(0, 2, 3, 1).reshape(n * h * w, c)]
    return [image.t() for image in x.view(n, c, h * w)]


def _blocks(weight: Tensor, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """Return the column blocks (out channels, Cᵢ) of the weight."""
    return weight.flatten(1).split([x.shape[1] for x in inputs], dim=1)


def _sum(inputs: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return ``Σᵢ Wᵢ xᵢ + b``, summed in float32 or better. Only oneDNN's bfloat16 rounds after each input."""
    layout = format_of(inputs[0])
    if onednn.supported(inputs[0], layout):
        return onednn.convolution_sum(inputs, _blocks(weight, inputs), bias, layout)
    out = _empty_output(inputs[0], weight.shape[0])
    lower = out.dtype in (torch.bfloat16, torch.float16)
    total = torch.empty_like(out, dtype=torch.float32) if lower else out
    blocks = _blocks(weight.to(out.dtype), inputs)
    for i, (x, block) in enumerate(zip(inputs, blocks, strict=True)):
        for row, sums in zip(_rows(x, layout), _rows(total, layout), strict=True):
            if i == 0:
                start = bias if bias is not None else weight.new_zeros(())
                sums.copy_(start.to(sums.dtype).expand_as(sums))
            if lower:
                sums += row @ block.t()
            else:
                sums.addmm_(row, block.t())
    return total.to(out.dtype)


@torch.library.custom_op("vovnet::osa_aggregate_backward", mutates_args=())
def _aggregate_backward(
    grad: Tensor,
    mask: Tensor | None,
    inputs: Sequence[Tensor],
    weight: Tensor,
    wanted: Sequence[bool],
    wants_weight: bool,
    wants_bias: bool,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return the gradients of the inputs, the weight and the bias; an empty tensor for each that is not wanted."""
    if cuda.supported(inputs, weight):
        return cuda.aggregate_backward(grad, mask, inputs, weight, wanted, wants_weight, wants_bias)
    inputs, layout = dense(inputs), format_of(inputs[0])
    g = relu_backward(grad.contiguous(memory_format=layout), mask)
    if onednn.supported(g, layout):
        d_inputs, d_blocks = onednn.convolution_gradients(g, inputs, _blocks(weight, inputs), wanted, wants_weight)
        d_inputs = [d.contiguous(memory_format=layout) if want else d for d, want in zip(d_inputs, wanted, strict=True)]
        whole = torch.cat(d_blocks, dim=1).to(weight.dtype).view(weight.shape) if wants_weight else None
    else:
        blocks = zip(inputs, _blocks(weight.to(g.dtype), inputs), wanted, strict=True)
        d_inputs = [_input_gradient(g, b, x, layout) if want else x.new_empty(0) for x, b, want in blocks]
        whole = _weight_gradient(g, inputs, weight) if wants_weight else None
    d_weight = weight.new_empty(0) if whole is None else match_strides(weight, whole)
    d_bias = g.sum((0, 2, 3), dtype=weight.dtype) if wants_bias else weight.new_empty(0)
    return d_inputs, d_weight, d_bias


@_aggregate_backward.register_fake
def _(
    grad: Tensor, mask: Tensor | None, inputs: Sequence[Tensor], weight: Tensor, wanted: Sequence[bool], *wants: bool
) -> tuple[list[Tensor], Tensor, Tensor]:
    layout, (wants_weight, wants_bias) = format_of(inputs[0]), wants
    return (
        [
            torch.empty(x.shape, dtype=x.dtype, device=x.device, memory_format=layout) if want else x.new_empty(0)
            for x, want in zip(inputs, wanted, strict=True)
        ],
        torch.empty_like(weight) if wants_weight else weight.new_empty(0),
        weight.new_empty(weight.shape[0] if wants_bias else 0),
    )


def _input_gradient(g: Tensor, block: Tensor, x: Tensor, layout: torch.memory_format) -> Tensor:
    gradient = torch.empty_like(x)
    for row, result in zip(_rows(g, layout), _rows(gradient, layout), strict=True):
        torch.mm(row, block, out=result)
    return gradient


def _weight_gradient(g: Tensor, inputs: Sequence[Tensor], weight: Tensor) -> Tensor:
    """Write each input's block in place; the images are summed in float32 or better."""
    layout = format_of(inputs[0])
    sums = torch.promote_types(weight.dtype, torch.float32)
    gradient = torch.zeros(weight.shape, dtype=sums, device=weight.device)
    for x, block in zip(inputs, _blocks(gradient, inputs), strict=True):
        for row, g_row in zip(_rows(x, layout), _rows(g, layout), strict=True):
            if block.dtype == row.dtype:
                block.addmm_(g_row.t(), row)
            else:
                block += g_row.t() @ row
    return gradient.to(weight.dtype)


class _Context(AutogradContext, Protocol):
    relu: bool
    needs_input_grad: tuple[Sequence[bool], bool, bool, bool, bool, bool]


def _save(
    ctx: _Context,
    inputs: tuple[Sequence[Tensor], Tensor, Tensor | None, Tensor | None, bool, bool],
    output: tuple[Tensor, Tensor],
) -> None:
    maps, weight, _, _, relu, keep_mask = inputs
    if relu and not keep_mask:
        raise RuntimeError("vovnet::osa_aggregate: keep_mask must be true where gradients are wanted and relu is true")
    ctx.relu = relu
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*maps, weight, output[1])


def _differentiate(
    ctx: _Context, grad: Tensor, _: None
) -> tuple[list[Tensor | None], Tensor | None, Tensor | None, Tensor | None, None, None]:
    *maps, weight, mask = ctx.saved_tensors
    wanted, wants_weight, wants_bias, wants_residual = ctx.needs_input_grad[:4]
    d_inputs, d_weight, d_bias = torch.ops.vovnet.osa_aggregate_backward(
        grad, mask if ctx.relu else None, maps, weight, list(wanted), wants_weight, wants_bias
    )
    d_parameters = d_weight if wants_weight else None, d_bias if wants_bias else None, grad if wants_residual else None
    return [d if want else None for d, want in zip(d_inputs, wanted, strict=True)], *d_parameters, None, None


_aggregate.register_autograd(_differentiate, setup_context=_save)
register_autocast(
    "osa_aggregate",
    lambda cast, inputs, weight, bias, residual, *rest: (
        *([cast(x) for x in inputs], weight, bias, None if residual is None else cast(residual)),
        *rest,
    ),
)
for _op in (_aggregate, _aggregate_backward):
    refuse_vmap(_op)
refuse_second_derivative(_aggregate_backward)


@register_flop_formula(torch.ops.vovnet.osa_aggregate)
def _(inputs: object, weight: list[int], *_: object, out_shape: list[list[int]], **__: object) -> int:
    """Count what ``torch.utils.flop_counter`` counts for the 1×1 convolution; tensors come as shapes."""
    out = out_shape[0]
    count: int = conv_flop_count([out[0], weight[1], *out[2:]], weight, out)
    return count


@register_flop_formula(torch.ops.vovnet.osa_aggregate_backward)
def _(
    grad: list[int],
    mask: object,
    inputs: list[list[int]],
    weight: list[int],
    wanted: Sequence[bool],
    wants_weight: bool,
    *_: object,
    **__: object,
) -> int:
    def products(x: list[int]) -> int:
        count: int = conv_flop_count(x, [weight[0], x[1], 1, 1], grad)
        return count

    return sum(products(x) * (want + wants_weight) for x, want in zip(inputs, wanted, strict=True))
