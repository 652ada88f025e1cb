"""CUDA tensors: run the compiled kernels if they support the tensors, otherwise the reference.

The kernels take channels-last maps of float16, bfloat16 and float32 whose channels are multiples of 16 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vovnet.ops.build import loader
from vovnet.ops.relu_mask import match_strides, relu_backward


def supported(inputs: Sequence[Tensor], weight: Tensor) -> bool:
    """True if the compiled aggregation takes these tensors. The first call for a GPU may compile it."""
    device = inputs[0].device
    if device.type != "cuda" or not loader.available(device):
        return False
    if not all(x.is_contiguous(memory_format=torch.channels_last) for x in inputs):
        return False
    answer: bool = torch.ops.vovnet._cuda_supported(
        list(inputs), _matrix(weight, inputs[0]), loader.capability(device), _tf32()
    )
    return answer


def aggregate_forward(
    inputs: Sequence[Tensor], weight: Tensor, bias: Tensor | None, residual: Tensor | None, relu: bool, keep_mask: bool
) -> tuple[Tensor, Tensor]:
    """Compute ``vovnet::osa_aggregate`` for tensors that are :func:`supported`."""
    x = inputs[0]
    bias = None if bias is None else _aligned(bias.to(x.dtype).contiguous())
    residual = None if residual is None else _aligned(residual.contiguous(memory_format=torch.channels_last))
    out, mask = torch.ops.vovnet._cuda_aggregate_forward(
        list(inputs), _matrix(weight, x), bias, residual, relu, relu and keep_mask, _tf32()
    )
    return out, mask


def aggregate_backward(
    grad: Tensor,
    mask: Tensor | None,
    inputs: Sequence[Tensor],
    weight: Tensor,
    wanted: Sequence[bool],
    wants_weight: bool,
    wants_bias: bool,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Compute ``vovnet::osa_aggregate_backward`` for tensors that are :func:`supported`."""
    g, d_bias = masked_gradient(grad, mask, wants_bias)
    d_inputs = [g.new_empty(0) for _ in inputs]
    if any(wanted):
        d_inputs = torch.ops.vovnet._cuda_aggregate_input_gradients(
            g, _matrix(weight, g), list(inputs), list(wanted), _tf32()
        )
    d_weight = weight.new_empty(0)
    if wants_weight:
        columns = torch.ops.vovnet._cuda_aggregate_weight_gradient(g, list(inputs), _tf32())
        d_weight = match_strides(weight, columns.to(weight.dtype).view(weight.shape))
    return d_inputs, d_weight, d_bias.to(weight.dtype) if wants_bias else weight.new_empty(0)


def masked_gradient(grad: Tensor, output_or_mask: Tensor | None, wants_sum: bool) -> tuple[Tensor, Tensor]:
    """Return the gradient of a ReLU's input and its float32 sum per channel, computed in one pass.

    ``output_or_mask`` is as for :func:`vovnet.ops.relu_mask.relu_backward`. If the sum is not wanted, the second result
    has no meaning.
    """
    grad = _aligned(grad.contiguous(memory_format=torch.channels_last))
    if output_or_mask is None and not wants_sum:
        return grad, grad
    out, mask = output_or_mask, None
    if out is not None and out.dtype == torch.uint8:
        out, mask = None, out
    elif out is not None:
        out = _aligned(out.contiguous(memory_format=torch.channels_last))
    has_relu = output_or_mask is not None
    g, total = torch.ops.vovnet._cuda_relu_backward(grad, out, mask, has_relu, wants_sum)
    return (g if has_relu else grad), total


def gradient_before_relu(grad: Tensor, output_or_mask: Tensor | None, wants_sum: bool) -> tuple[Tensor, Tensor | None]:
    """Return :func:`masked_gradient` if the kernels support ``grad``, otherwise the reference's gradient and no sum."""
    taken = grad.is_cuda and grad.dtype in (torch.float16, torch.bfloat16, torch.float32)
    if taken and grad.is_contiguous(memory_format=torch.channels_last) and loader.available(grad.device):
        return masked_gradient(grad, output_or_mask, wants_sum)
    return relu_backward(grad, output_or_mask), None


def _aligned(x: Tensor) -> Tensor:
    """Return ``x``, or a copy if its memory does not start at a multiple of 16 bytes, as the kernels' loads need."""
    return x.clone() if x.data_ptr() % 16 else x


def _matrix(weight: Tensor, like: Tensor) -> Tensor:
    """Return a weight (out channels, Σ Cᵢ, 1, 1) as a contiguous matrix of the maps' dtype."""
    return weight.flatten(1).to(like.dtype).contiguous()


def _tf32() -> bool:
    """True if PyTorch lets convolutions round float32 to TF32; the aggregation is a convolution."""
    conv = getattr(torch.backends.cudnn, "conv", None)
    if conv is not None:
        return bool(conv.fp32_precision == "tf32")
    return bool(torch.backends.cudnn.allow_tf32)  # before torch 2.9
