"""VoVNet's operators for the CPU: convolutions with packed weights, max-pool, and RoIAlign over several maps.

The kernels have plain, AVX2, AVX-512 and AVX-512-BF16 code, and take what the processor has. They are for inference and
have no gradients. Maps are channels-last (``x.contiguous(memory_format=torch.channels_last)``), float32 or bfloat16.

This file becomes ``__init__.py`` of a variant in the layout of Hugging Face's ``kernels``. It imports PyTorch alone.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["instruction_set", "operators", "pack_conv", "packed_conv", "pool_max", "roi_align_levels"]

_FOLDER = Path(__file__).parent


_KEPT: list[torch.library.Library] = []
"""Keeps the registrations alive: they end with these objects."""


@functools.cache
def operators() -> Any:
    """Return the namespace ``torch.ops.ID`` of this build's operators; the first call loads them."""
    namespace = json.loads((_FOLDER / "metadata.json").read_text(encoding="utf-8"))["id"]
    found = getattr(torch.ops, namespace)
    if not hasattr(found, "pack_conv"):  # otherwise another copy of this build has been loaded
        library = torch.library.Library(namespace, "FRAGMENT")
        _KEPT.append(library)
        for schema in json.loads((_FOLDER / "schemas.json").read_text(encoding="utf-8")):
            library.define(schema, tags=(torch.Tag.pt2_compliant_tag, torch.Tag.needs_fixed_stride_order))
        torch.ops.load_library(str(_FOLDER / "vovnet_cpu.so"))
    return found


def instruction_set() -> str:
    """Return ``"plain"``, ``"avx2"`` or ``"avx512"``."""
    return str(operators()._cpu_instruction_set())


def pack_conv(weight: Tensor, method: int = 0) -> Tensor:
    """Pack the weight of a convolution (out channels, C, height, width), float32, for :func:`packed_conv`.

    Args:
        weight: contiguous.
        method: 0 multiplies directly. 1, 2 and 3 are Winograd's transforms for 3×3 kernels and 16 or more channels,
            faster and less exact: F(2×2) and F(4×4) for stride 1, F(3×3) for stride 2. 16 more stand for maps and
            products in bfloat16, 48 more for bfloat16 maps alone.
    """
    packed: Tensor = operators().pack_conv(weight, method)
    return packed


def packed_conv(
    x: Tensor,
    weight: Tensor,
    packed: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    relu: bool = False,
    method: int = 0,
) -> Tensor:
    """Return ``relu(conv2d(x, weight) + bias) + residual``, channels-last.

    Args:
        x: (N, C, H, W), channels-last; with fewer than 16 channels of any layout, and always float32.
        weight: (out channels, C, height, width), float32.
        packed: what :func:`pack_conv` made of ``weight`` for ``method``.
        bias: (out channels,), float32.
        residual: added after the ReLU; a smaller map is enlarged by repeating its values.
        stride: in height and width.
        padding: zeros on each side, in height and width.
        relu: apply a ReLU.
        method: as for :func:`pack_conv`.
    """
    out: Tensor = operators().packed_conv(x, weight, bias, residual, packed, list(stride), list(padding), relu, method)
    return out


def pool_max(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int] = (0, 0), ceil_mode: bool = False
) -> Tensor:
    """Return ``torch.nn.functional.max_pool2d`` of a channels-last map."""
    out: Tensor = operators().pool_max(x, list(kernel), list(stride), list(padding), ceil_mode)
    return out


def roi_align_levels(
    maps: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    scales: Sequence[float],
    output_size: Sequence[int],
    sampling_ratio: int = 2,
    aligned: bool = False,
) -> Tensor:
    """Pool boxes from several maps (N, C, Hₗ, Wₗ) by RoIAlign; return (K, C, height, width), channels-last.

    Args:
        maps: channels-last, float32 or bfloat16.
        rois: (K, 5) float32: index of the image, then x1, y1, x2, y2 in the image's pixels.
        levels: (K,) int64: the index of each box's map.
        scales: for each map, its size divided by the image's.
        output_size: bins in height and width.
        sampling_ratio: samples per bin and axis; 0 takes one per pixel of the map.
        aligned: shift the boxes by half a pixel.
    """
    out: Tensor = operators().roi_align_levels(
        list(maps), rois, levels, list(scales), list(output_size), sampling_ratio, aligned
    )
    return out
