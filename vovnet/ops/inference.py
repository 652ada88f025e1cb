"""The operators of :func:`vovnet.fuse`: inference on a CPU with weights that were packed for the kernels.

Each operator has a schema, a reference in plain PyTorch and a fake kernel here. Once :mod:`vovnet.ops.build.loader` has
loaded the compiled library (``csrc/cpu``), PyTorch's dispatcher calls that for CPU tensors. Only the compiled library
has ``vovnet::pack_conv``. The operators have no gradients; :mod:`vovnet.fusion.layers` does not call them if gradients
are wanted.

Methods are those of :mod:`vovnet.ops.algorithms`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import conv_flop_count, register_flop_formula
from torchvision.ops import roi_align

from vovnet.ops.algorithms import BFLOAT16, FLOAT_PRODUCTS
from vovnet.ops.arguments import conv_shape
from vovnet.ops.registration import LIBRARY

SCHEMAS = (
    "pack_conv(Tensor weight, int method) -> Tensor",
    "packed_conv(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor packed, int[2] stride, "
    "int[2] padding, bool relu, int method) -> Tensor",
    "packed_chain(Tensor x, Tensor[] weights, Tensor[] biases, Tensor[] packed, int[] methods, int[] steps) "
    "-> Tensor[]",
    "pool_max(Tensor x, int[2] kernel, int[2] stride, int[2] padding, bool ceil_mode) -> Tensor",
    "roi_align_levels(Tensor[] maps, Tensor rois, Tensor levels, float[] scales, int[2] output_size, "
    "int sampling_ratio, bool aligned) -> Tensor",
)
"""The operators of ``csrc/cpu``."""

for _schema in SCHEMAS:
    LIBRARY.define(_schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))


def packed_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    packed: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    relu: bool,
    method: int,
) -> Tensor:
    """Return ``relu(conv2d(x, weight) + bias) + residual``: the reference of ``vovnet::packed_conv``.

    Args:
        x: (N, C, H, W), channels-last. With fewer than 16 channels it may have any layout and is always float32.
        weight: (out channels, C, kernel height, kernel width), float32. A linear layer is a kernel as large as the map.
        bias: (out channels,), float32.
        residual: added **after** the ReLU; (N, out channels, H', W'), or a smaller map that is enlarged as
            ``F.interpolate(mode="nearest")`` does.
        packed: the weight as ``pack_conv`` packed it for the method; the reference does not read it.
        stride: stride in height and width.
        padding: zeros added on each side, in height and width.
        relu: apply a ReLU.
        method: how the products are computed.

    Returns:
        (N, out channels, H', W'), channels-last; bfloat16 if the method says so, otherwise of the dtype of ``x``.
    """
    low = bool(method & BFLOAT16)
    if method & FLOAT_PRODUCTS:
        x = x.float()
    elif low:
        x, weight = x.to(torch.bfloat16).float(), weight.to(torch.bfloat16).float()
    out = F.conv2d(x, weight, bias, list(stride), list(padding))
    if relu:
        out = out.relu_()
    if residual is not None:
        out = out + repeated(residual, out.shape[-2:])
    return _channels_last(out.to(torch.bfloat16) if low else out)


_CONV, _POOL, _BLOCK = range(3)


def conv_step(stride: Sequence[int], padding: Sequence[int], relu: bool, is_output: bool) -> list[int]:
    """Return a step of :func:`packed_chain`: a convolution. ``is_output`` makes its map one of the results."""
    return [_CONV, is_output, *stride, *padding, relu, 0, 0]


def pool_step(
    kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool, is_output: bool
) -> list[int]:
    """Return a step of :func:`packed_chain`: a max-pool."""
    return [_POOL, is_output, *kernel, *stride, *padding, ceil_mode]


def block_step(convs: int, identity: bool, is_output: bool) -> list[int]:
    """Return a step of :func:`packed_chain`: a One-Shot-Aggregation block.

    Args:
        convs: number of convolutions: a sequence of 3×3 convolutions (stride 1, padding 1), then the 1×1 aggregation of
            the block's input and all their outputs. Each is followed by a ReLU.
        identity: add the block's input after the last ReLU.
        is_output: make the block's map one of the results.
    """
    return [_BLOCK, is_output, convs, identity, 0, 0, 0, 0, 0]


STEP = 9
"""Length of a step: its kind, ``is_output``, and the arguments of its kind."""


def packed_chain(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    packed: Sequence[Tensor],
    methods: Sequence[int],
    steps: Sequence[int],
) -> list[Tensor]:
    """Run layers one after the other: the reference of ``vovnet::packed_chain``.

    Args:
        x: (N, C, H, W), as the first layer takes it.
        weights: the weights of all convolutions, in the order of the steps.
        biases: one per weight.
        packed: one per weight, as for :func:`packed_conv`.
        methods: one per weight.
        steps: the concatenated results of :func:`conv_step`, :func:`pool_step` and :func:`block_step`.

    Returns:
        The maps of the steps with ``is_output``, channels-last.
    """

    def conv(x: Tensor, stride: Sequence[int], padding: Sequence[int], relu: bool, residual: Tensor | None) -> Tensor:
        weight, bias, pack, method = next(convs)
        return packed_conv(x, weight, bias, residual, pack, stride, padding, relu, method)

    convs = iter(zip(weights, biases, packed, methods, strict=True))
    return _run_steps(x, steps, conv, pool_max)


def _run_steps(
    x: Tensor, steps: Sequence[int], conv: Callable[..., Tensor], pool: Callable[..., Tensor]
) -> list[Tensor]:
    outputs = []
    for kind, is_output, *rest in (steps[i : i + STEP] for i in range(0, len(steps), STEP)):
        if kind == _CONV:
            x = conv(x, rest[:2], rest[2:4], bool(rest[4]), None)
        elif kind == _POOL:
            x = pool(x, rest[:2], rest[2:4], rest[4:6], bool(rest[6]))
        else:
            count, identity = rest[:2]
            maps = [x]
            for _ in range(count - 1):
                maps.append(conv(maps[-1], [1, 1], [1, 1], True, None))
            x = conv(torch.cat(maps, dim=1), [1, 1], [0, 0], True, x if identity else None)
        if is_output:
            outputs.append(x)
    return outputs


def pool_max(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], ceil_mode: bool
) -> Tensor:
    """Return ``max_pool2d`` of (N, C, H, W), channels-last: the reference of ``vovnet::pool_max``."""
    return _channels_last(F.max_pool2d(x, list(kernel), list(stride), list(padding), 1, ceil_mode))


def roi_align_levels(
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    output_size: Sequence[int],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """Pool boxes from several maps by RoIAlign: the reference of ``vovnet::roi_align_levels``.

    Args:
        maps: (N, C, Hₗ, Wₗ) float32 or bfloat16, channels-last.
        rois: (K, 5) float32: index of the image, then x1, y1, x2, y2 in the image's pixels.
        levels: (K,) int64: the index of the map that each box is pooled from.
        scales: for each map, its size divided by the image's.
        output_size: number of bins in height and width.
        sampling_ratio: number of samples per bin and axis; 0 or less takes one per pixel of the map.
        aligned: shift the boxes by half a pixel, as torchvision's ``aligned`` does.

    Returns:
        (K, C, height, width), channels-last.
    """
    out = rois.new_zeros(len(rois), maps[0].shape[1], *output_size)
    for level, (feature, scale) in enumerate(zip(maps, scales, strict=True)):
        chosen = torch.where(levels == level)[0]
        out[chosen] = roi_align(feature.float(), rois[chosen], list(output_size), scale, sampling_ratio, aligned)
    return _channels_last(out.to(maps[0].dtype))


def repeated(residual: Tensor, size: Sequence[int]) -> Tensor:
    """Return the map enlarged to ``size`` (height, width) by repeating its values, as torchvision's FPN does."""
    if tuple(residual.shape[-2:]) == tuple(size):
        return residual
    return F.interpolate(residual, size=list(size), mode="nearest")


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


for _reference in (packed_conv, packed_chain, pool_max, roi_align_levels):
    LIBRARY.impl(_reference.__name__, _reference, "CompositeExplicitAutograd")


def _empty(shape: Sequence[int], like: Tensor, method: int = 0) -> Tensor:
    dtype = torch.bfloat16 if method & BFLOAT16 else like.dtype
    return torch.empty(tuple(shape), dtype=dtype, device=like.device, memory_format=torch.channels_last)


@torch.library.register_fake("vovnet::packed_conv")
def _(x: Tensor, weight: Tensor, *rest: *tuple[*tuple[object, ...], list[int], list[int], bool, int]) -> Tensor:
    *_, stride, padding, _, method = rest
    return _empty(conv_shape(x, weight, stride, padding, (1, 1)), x, method)


@torch.library.register_fake("vovnet::packed_chain")
def _(
    x: Tensor, weights: Sequence[Tensor], *rest: *tuple[*tuple[object, ...], Sequence[int], Sequence[int]]
) -> list[Tensor]:
    *_, methods, steps = rest

    def conv(x: Tensor, stride: Sequence[int], padding: Sequence[int], *_: object) -> Tensor:
        weight, method = next(convs)
        return _empty(conv_shape(x, weight, stride, padding, (1, 1)), x, method)

    convs = iter(zip(weights, methods, strict=True))
    return _run_steps(x, steps, conv, pool_max)


torch.library.register_fake("vovnet::pool_max", pool_max)


@torch.library.register_fake("vovnet::roi_align_levels")
def _(
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    output_size: Sequence[int],
    *_: object,
) -> Tensor:
    return _empty((rois.shape[0], maps[0].shape[1], *output_size), maps[0])


@register_flop_formula(torch.ops.vovnet.packed_conv)
def _(x: list[int], weight: list[int], *_: object, out_shape: list[int], **__: object) -> int:
    """Count the products of the plain convolution, as ``torch.utils.flop_counter`` does, also for Winograd's."""
    count: int = conv_flop_count(x, weight, out_shape)
    return count


@register_flop_formula(torch.ops.vovnet.packed_chain, get_raw=True)
def _(x: Tensor, weights: Sequence[Tensor], *rest: *tuple[*tuple[object, ...], list[int]], **_: object) -> int:
    counts: list[int] = []

    def conv(x: Tensor, stride: list[int], padding: list[int], *_: object) -> Tensor:
        weight = next(convs)
        out = torch.empty(conv_shape(x, weight, stride, padding, (1, 1)), device="meta")
        counts.append(conv_flop_count(list(x.shape), list(weight.shape), list(out.shape)))
        return out

    convs = iter(weights)
    _run_steps(torch.empty(x.shape, device="meta"), rest[-1], conv, pool_max)
    return sum(counts)
