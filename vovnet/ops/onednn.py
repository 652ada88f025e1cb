"""Call oneDNN's convolutions directly: for the aggregation's products, and for a convolution with a ReLU behind it.

On a CPU they are the fastest way to compute these products in float32, and in bfloat16 if the CPU has instructions for
it. The exception are large contiguous maps, because oneDNN reorders each input first. Measured on AMD Zen 5 with
``python -m benchmarks.memory --time``: MKL's matrix products reach half the speed of oneDNN's convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, flop_registry, register_flop_formula

from vovnet.modules import Geometry
from vovnet.ops.gradients import convolution_backward

_POINTWISE = Geometry([1, 1], [0, 0], [1, 1], 1)

_LARGE = 10_000
"""Number of pixels of a contiguous (N, C, H, W) map from which matrix products are faster."""


def supported(x: Tensor, layout: torch.memory_format) -> bool:
    """True if oneDNN should compute the products of maps like ``x`` that are dense in ``layout``."""
    # This is Inductor's operator for fused convolutions, which adds in place. PyTorch has no public one.
    ready = bool(torch.backends.mkldnn.enabled) and hasattr(torch.ops.mkldnn, "_convolution_pointwise_")
    return _takes(x) and ready and (layout == torch.channels_last or x.shape[2] * x.shape[3] < _LARGE)


def _takes(x: Tensor) -> bool:
    if x.device.type != "cpu" or x.numel() == 0:
        return False
    return x.dtype == torch.float32 or (x.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def convolution_sum(
    inputs: Sequence[Tensor], blocks: Sequence[Tensor], bias: Tensor | None, layout: torch.memory_format
) -> Tensor:
    """Return ``Σᵢ conv1x1(xᵢ, Wᵢ) + bias``; each convolution adds to the output of the ones before it in one pass.

    Inputs (N, Cᵢ, H, W) are dense in ``layout``, and so is the result; blocks are (out channels, Cᵢ).
    """
    bias = None if bias is None else bias.to(inputs[0].dtype)
    out = F.conv2d(inputs[0], _kernel(blocks[0], inputs[0]), bias).contiguous(memory_format=layout)
    for x, block in zip(inputs[1:], blocks[1:], strict=True):
        torch.ops.mkldnn._convolution_pointwise_.binary(
            out, x, _kernel(block, x), None, [0, 0], [1, 1], [1, 1], 1, "add", 1.0, None, [], None
        )
    return out


def convolution_gradients(
    g: Tensor, inputs: Sequence[Tensor], blocks: Sequence[Tensor], wanted: Sequence[bool], wants_weight: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients of the inputs and of the blocks; an empty tensor for each that is not wanted.

    ``g`` is the gradient of the sum; inputs and blocks are those of :func:`convolution_sum`.
    """
    d_inputs, d_blocks = [], []
    for x, block, want in zip(inputs, blocks, wanted, strict=True):
        d_x: Tensor | None = None
        d_block: Tensor | None = None
        if want or wants_weight:
            d_x, d_block = convolution_backward(g, x, _kernel(block, x), _POINTWISE, want, wants_weight)
        d_inputs.append(x.new_empty(0) if d_x is None else d_x)
        d_blocks.append(x.new_empty(0) if d_block is None else d_block.flatten(1))
    return d_inputs, d_blocks


def fuses_relu(x: Tensor) -> bool:
    """True if :func:`convolution_relu` takes maps like ``x``."""
    operators = ("_convolution_pointwise", "_reorder_convolution_weight")
    return _takes(x) and bool(torch.backends.mkldnn.enabled) and all(hasattr(torch.ops.mkldnn, op) for op in operators)


def reordered(weight: Tensor, geometry: Geometry, x: Tensor) -> Tensor:
    """Return a weight in oneDNN's layout for maps of the size of ``x``; oneDNN reorders any other in every call."""
    stride, padding, dilation, groups = geometry
    packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
        weight.to(x.dtype), padding, stride, dilation, groups, list(x.shape)
    )
    return packed


def convolution_relu(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, relu: bool) -> Tensor:
    """Return ``relu(conv2d(x, weight) + bias)``, computed in one pass without gradients.

    ``x`` is channels-last, the weight is the result of :func:`reordered`, and the bias has the dtype of ``x``.
    """
    stride, padding, dilation, groups = geometry
    out: Tensor = torch.ops.mkldnn._convolution_pointwise(
        x, weight, bias, padding, stride, dilation, groups, "relu" if relu else "none", [], None
    )
    return out


def _kernel(block: Tensor, x: Tensor) -> Tensor:
    return block[:, :, None, None].to(x.dtype).contiguous()


def _count_flops(x: list[int], weight: list[int], *_: object, out_shape: list[int], **__: object) -> int:
    count: int = conv_flop_count(x, weight, out_shape)
    return count


# PyTorch's counter does not know PyTorch's operator that :func:`convolution_relu` calls.
_pointwise = getattr(torch.ops.mkldnn, "_convolution_pointwise", None)
if _pointwise is not None and _pointwise not in flop_registry:
    register_flop_formula(_pointwise)(_count_flops)
