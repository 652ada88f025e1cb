"""VoVNet's operators for CUDA: the 1×1 aggregation of several maps without concatenating them, and its gradients.

Maps are channels-last (N, C, H, W) in float16, bfloat16 or float32; channels are multiples of 8, or of 4 in float32.
Their memory starts at multiples of 16 bytes. The operators have no autograd; they are the parts to build it from.

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

__all__ = [
    "aggregate_forward",
    "aggregate_input_gradients",
    "aggregate_weight_gradient",
    "operators",
    "relu_backward",
    "supported",
]

_FOLDER = Path(__file__).parent


@functools.cache
def operators() -> Any:
    """Return the namespace ``torch.ops.ID`` of the operators; the first call loads the kernels."""
    found = getattr(torch.ops, json.loads((_FOLDER / "metadata.json").read_text(encoding="utf-8"))["id"])
    if not hasattr(found, "_cuda_supported"):  # otherwise another copy of this build has been loaded
        torch.ops.load_library(str(_FOLDER / "vovnet_cuda.so"))
    return found


def supported(inputs: Sequence[Tensor], weight: Tensor, capability: int, *, tf32: bool = False) -> bool:
    """True if the kernels take these tensors on a GPU of a compute capability such as 80 or 90."""
    return bool(operators()._cuda_supported(list(inputs), weight, capability, tf32))


def aggregate_forward(
    inputs: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    *,
    relu: bool = True,
    with_mask: bool = False,
    tf32: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return ``relu(Σᵢ conv1x1(xᵢ, Wᵢ) + bias) + residual`` and the mask of what the ReLU let through.

    Args:
        inputs: 1 to 16 maps (N, Cᵢ, H, W).
        weight: (out channels, Σ Cᵢ), contiguous, of the maps' dtype.
        bias: (out channels,), of the maps' dtype.
        residual: (N, out channels, H, W), added after the ReLU.
        relu: apply a ReLU.
        with_mask: make the mask, a bit per element, which :func:`relu_backward` takes; otherwise it is empty.
        tf32: round the factors of float32 products to TF32.
    """
    out: tuple[Tensor, Tensor] = operators()._cuda_aggregate_forward(
        list(inputs), weight, bias, residual, relu, with_mask, tf32
    )
    return out


def aggregate_input_gradients(
    g: Tensor, weight: Tensor, inputs: Sequence[Tensor], wanted: Sequence[bool], *, tf32: bool = False
) -> list[Tensor]:
    """Return the gradient of each wanted input, given that of the sum before the ReLU; others are empty."""
    out: list[Tensor] = operators()._cuda_aggregate_input_gradients(g, weight, list(inputs), list(wanted), tf32)
    return out


def aggregate_weight_gradient(g: Tensor, inputs: Sequence[Tensor], *, tf32: bool = False) -> Tensor:
    """Return the gradient of the weight (out channels, Σ Cᵢ), given that of the sum before the ReLU."""
    out: Tensor = operators()._cuda_aggregate_weight_gradient(g, list(inputs), tf32)
    return out


def relu_backward(
    grad: Tensor, out: Tensor | None = None, mask: Tensor | None = None, *, want_sum: bool = True
) -> tuple[Tensor, Tensor]:
    """Return the gradient before a ReLU and, if wanted, its float32 sum per channel.

    Args:
        grad: the gradient after the ReLU, (N, C, H, W).
        out: the ReLU's output, or None with ``mask``.
        mask: the mask of :func:`aggregate_forward`.
        want_sum: compute the sum, which is the gradient of a bias; otherwise the second result has no meaning.
    """
    has_relu = out is not None or mask is not None
    found: tuple[Tensor, Tensor] = operators()._cuda_relu_backward(grad, out, mask, has_relu, want_sum)
    return found if has_relu else (grad, found[1])
