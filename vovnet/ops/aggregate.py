"""The 1×1 aggregation of an OSA block over a list of feature maps, whose concatenation never exists.

The operator ``vovnet::osa_aggregate`` returns the output and, for the backward pass, a bit an element of what the ReLU
let through: the output itself is not kept. ``vovnet::osa_aggregate_backward`` is its gradient. Each is defined here in
plain PyTorch, which the CPU runs; CUDA tensors take ``csrc/cuda`` where :mod:`vovnet.ops.build.loader` can load it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from vovnet.ops import cuda, onednn
from vovnet.ops.arguments import check_aggregate
from vovnet.ops.registration import refuse_second_derivative, refuse_vmap, under_autocast
from vovnet.ops.relu_mask import format_of, in_strides_of, pack_positive, relu_backward


def osa_aggregate(
    inputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = True,
) -> Tensor:
    """``relu(Σᵢ conv1x1(xᵢ, Wᵢ) + bias) + residual``, where ``Wᵢ`` are the column blocks of the one weight.

    Equals ``F.conv2d(torch.cat(inputs, 1), weight, bias)`` with the rest behind it. Autograd keeps the inputs, which
    the convolutions that made and take them keep anyway, and a bit an element of the output.

    Args:
        inputs: one or more maps (N, Cᵢ, H, W) of one floating-point type on one device; the same tensor may stand
            twice. Any layout; contiguous and channels-last ones are read in place.
        weight: (out channels, Σ Cᵢ, 1, 1), of the inputs' type, or float32 beside float16 and bfloat16 inputs.
        bias: (out channels,), of the weight's type.
        residual: (N, out channels, H, W), of the inputs' type, added **after** the ReLU, as VoVNet's identity is.
        relu: whether there is a ReLU.

    Returns:
        (N, out channels, H, W) in the layout of the first input.

    Raises:
        InputError: a shape, type or device does not fit; the message names the argument.
    """
    differentiable = [
        value for value in (*inputs, weight, bias, residual) if isinstance(value, Tensor) and value.requires_grad
    ]
    needs_mask = relu and torch.is_grad_enabled() and bool(differentiable)
    out: Tensor = torch.ops.vovnet.osa_aggregate(list(inputs), weight, bias, residual, relu, needs_mask)[0]
    return out


@torch.library.custom_op("vovnet::osa_aggregate", mutates_args=())
def _aggregate(
    inputs: Sequence[Tensor], weight: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool, keep_mask: bool
) -> tuple[Tensor, Tensor]:
    """The output, and which elements the ReLU let through, as bits (:mod:`vovnet.ops.relu_mask`); or no bits."""
    check_aggregate(inputs, weight, bias, residual)
    if cuda.takes(inputs, weight):
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
    bits = (out.numel() + 7) // 8 if relu and keep_mask else 0
    return out, weight.new_empty(bits, dtype=torch.uint8)


def dense(inputs: Sequence[Tensor]) -> list[Tensor]:
    """All contiguous, or all channels-last, as the first one is."""
    layout = format_of(inputs[0])
    return [x.contiguous(memory_format=layout) for x in inputs]


def _empty_output(x: Tensor, out_channels: int) -> Tensor:
    n, _, h, w = x.shape
    return torch.empty((n, out_channels, h, w), dtype=x.dtype, device=x.device, memory_format=format_of(x))


def _rows(x: Tensor, layout: torch.memory_format) -> list[Tensor]:
    """A map, dense in ``layout``, as matrices of channels that share its memory.

    (N·H·W, C) if channels-last, else each image's. The map alone does not tell: that of one channel is dense in both.
    """
    n, c, h, w = x.shape
    if layout == torch.channels_last:
        return [x.permute(0, 2, 3, 1).reshape(n * h * w, c)]
    return [image.t() for image in x.view(n, c, h * w)]


def _blocks(weight: Tensor, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
    """The column blocks (out channels, Cᵢ) of the weight."""
    return weight.flatten(1).split([x.shape[1] for x in inputs], dim=1)


def _sum(inputs: Sequence[Tensor], weight: Tensor, bias: Tensor | None) -> Tensor:
    """``Σᵢ Wᵢ xᵢ + b``, added up in float32 at least, but for oneDNN's bfloat16, which rounds after each input."""
    layout = format_of(inputs[0])
    if onednn.serves(inputs[0], layout):
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
    """The gradients of the inputs (an empty tensor where one is not wanted), the weight and the bias."""
    if cuda.takes(inputs, weight):
        return cuda.aggregate_backward(grad, mask, inputs, weight, wanted, wants_weight, wants_bias)
    inputs, layout = dense(inputs), format_of(inputs[0])
    g = relu_backward(grad.contiguous(memory_format=layout), mask)
    if onednn.serves(g, layout):
        d_inputs, d_blocks = onednn.convolution_gradients(g, inputs, _blocks(weight, inputs), wanted, wants_weight)
        d_inputs = [d.contiguous(memory_format=layout) if want else d for d, want in zip(d_inputs, wanted, strict=True)]
        whole = torch.cat(d_blocks, dim=1).to(weight.dtype).view(weight.shape) if wants_weight else None
    else:
        blocks = zip(inputs, _blocks(weight.to(g.dtype), inputs), wanted, strict=True)
        d_inputs = [_input_gradient(g, b, x, layout) if want else x.new_empty(0) for x, b, want in blocks]
        whole = _weight_gradient(g, inputs, weight) if wants_weight else None
    d_weight = weight.new_empty(0) if whole is None else in_strides_of(weight, whole)
    d_bias = g.sum((0, 2, 3), dtype=weight.dtype) if wants_bias else weight.new_empty(0)
    return d_inputs, d_weight, d_bias


@_aggregate_backward.register_fake
def _(
    grad: Tensor,
    mask: Tensor | None,
    inputs: Sequence[Tensor],
    weight: Tensor,
    wanted: Sequence[bool],
    wants_weight: bool,
    wants_bias: bool,
) -> tuple[list[Tensor], Tensor, Tensor]:
    layout = format_of(inputs[0])
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
    """Each input's block is written where it belongs; the images are added up in float32 at least."""
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


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    maps, weight, bias, _, relu, keep_mask = inputs
    if relu and not keep_mask:
        raise RuntimeError("vovnet::osa_aggregate: keep_mask must be true where gradients are wanted and relu is true")
    ctx.relu, ctx.has_bias = relu, bias is not None
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*maps, weight, output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Any) -> tuple[Any, ...]:
    *maps, weight, mask = ctx.saved_tensors
    wanted, wants_weight, wants_bias, wants_residual = ctx.needs_input_grad[:4]
    d_inputs, d_weight, d_bias = torch.ops.vovnet.osa_aggregate_backward(
        grad, mask if ctx.relu else None, maps, weight, list(wanted), wants_weight, wants_bias
    )
    return (
        [d if want else None for d, want in zip(d_inputs, wanted, strict=True)],
        d_weight if wants_weight else None,
        d_bias if wants_bias else None,
        grad if wants_residual else None,
        None,
        None,
    )


_aggregate.register_autograd(_differentiate, setup_context=_save)
under_autocast(
    "osa_aggregate",
    lambda cast, inputs, weight, bias, residual, *rest: (
        [cast(x) for x in inputs],
        weight,
        bias,
        None if residual is None else cast(residual),
        *rest,
    ),
)
for _op in (_aggregate, _aggregate_backward):
    refuse_vmap(_op)
refuse_second_derivative(_aggregate_backward)
