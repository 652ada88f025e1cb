"""The way of CUDA tensors: compiled kernels where they serve, the reference where they do not.

The kernels take channels-last maps of float16, bfloat16 and float32 whose channels fill 16 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vovnet.ops.build import loader
from vovnet.ops.relu_mask import in_strides_of, relu_backward


def takes(inputs: Sequence[Tensor], weight: Tensor) -> bool:
    """Whether the compiled aggregation takes these tensors; the first call for a GPU may build it."""
    device = inputs[0].device
    if device.type != "cuda" or not loader.available(device):
        return False
    if not all(x.is_contiguous(memory_format=torch.channels_last) for x in inputs):
        return False
    served: bool = torch.ops.vovnet._cuda_supported(
        list(inputs), _matrix(weight, inputs[0]), loader.capability(device), _tf32()
    )
    return served


def aggregate_forward(
    inputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    relu: bool,
    keep_mask: bool,
) -> tuple[Tensor, Tensor]:
    """Arguments and results as of ``vovnet::osa_aggregate``, for tensors that :func:`takes` admits."""
    x = inputs[0]
    lowered = None if bias is None else _aligned(bias.to(x.dtype).contiguous())
    beside = None if residual is None else _aligned(residual.contiguous(memory_format=torch.channels_last))
    out, mask = torch.ops.vovnet._cuda_aggregate_forward(
        list(inputs), _matrix(weight, x), lowered, beside, relu, relu and keep_mask, _tf32()
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
    """Arguments and results as of ``vovnet::osa_aggregate_backward``, for tensors that :func:`takes` admits."""
    g, d_bias = masked_gradient(grad, mask, wants_bias)
    d_inputs = [g.new_empty(0) for _ in inputs]
    if any(wanted):
        d_inputs = torch.ops.vovnet._cuda_aggregate_input_gradients(
            g, _matrix(weight, g), list(inputs), list(wanted), _tf32()
        )
    d_weight = weight.new_empty(0)
    if wants_weight:
        columns = torch.ops.vovnet._cuda_aggregate_weight_gradient(g, list(inputs), _tf32())
        d_weight = in_strides_of(weight, columns.to(weight.dtype).view(weight.shape))
    return d_inputs, d_weight, d_bias.to(weight.dtype) if wants_bias else weight.new_empty(0)


def masked_gradient(grad: Tensor, kept: Tensor | None, wants_sum: bool) -> tuple[Tensor, Tensor]:
    """The gradient before a ReLU and, if wanted, its sum a channel in float32, in one pass.

    Args:
        grad: (N, C, H, W), of a type that the kernels take.
        kept: as of :func:`vovnet.ops.relu_mask.relu_backward`.
        wants_sum: else the second result has no meaning.
    """
    grad = _aligned(grad.contiguous(memory_format=torch.channels_last))
    if kept is None and not wants_sum:
        return grad, grad
    packed = kept is not None and kept.dtype == torch.uint8
    out = None if kept is None or packed else _aligned(kept.contiguous(memory_format=torch.channels_last))
    mask = kept if packed else None
    g, total = torch.ops.vovnet._cuda_relu_backward(grad, out, mask, None, kept is not None, wants_sum)
    return (grad if kept is None else g), total


def gradient_before_relu(grad: Tensor, kept: Tensor | None, wants_sum: bool) -> tuple[Tensor, Tensor | None]:
    """:func:`masked_gradient` where the kernels serve, else the reference and no sum."""
    serves = grad.is_cuda and grad.dtype in (torch.float16, torch.bfloat16, torch.float32)
    if serves and grad.is_contiguous(memory_format=torch.channels_last) and loader.available(grad.device):
        return masked_gradient(grad, kept, wants_sum)
    return relu_backward(grad, kept), None


def _aligned(x: Tensor) -> Tensor:
    """``x``, copied if its memory does not begin where the kernels' 16-byte loads can."""
    return x.clone() if x.data_ptr() % 16 else x


def _matrix(weight: Tensor, like: Tensor) -> Tensor:
    """(out channels, Σ Cᵢ, 1, 1) → (out channels, Σ Cᵢ), contiguous, in the maps' type."""
    return weight.flatten(1).to(like.dtype).contiguous()


def _tf32() -> bool:
    """Whether PyTorch lets convolutions, of which the aggregation is one, round float32 to TF32."""
    conv = getattr(torch.backends.cudnn, "conv", None)
    if conv is not None:
        return bool(conv.fp32_precision == "tf32")
    return bool(torch.backends.cudnn.allow_tf32)  # before torch 2.9
