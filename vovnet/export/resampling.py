"""Pillow's resizing of bytes as two matrix products, for exported models that must not depend on Pillow."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

Filter = Literal["bilinear", "bicubic"]

_SUPPORT: dict[Filter, float] = {"bilinear": 1.0, "bicubic": 2.0}


def pillow_resize(
    images: Tensor, size: tuple[Any, Any], resample: Filter, crop: tuple[Any, Any, Any, Any] | None = None
) -> Tensor:
    """Resize as ``PIL.Image.resize`` does: averaging when it shrinks, rounding to bytes after each direction.

    Pillow's weights have 22 bits, these have float32's 24, so that a byte may differ by 1 where a sum is nearly half.

    Args:
        images: (N, C, H, W) float, whole numbers in 0..255.
        size: height and width of the result; they may be symbolic sizes.
        resample: Pillow's filter.
        crop: top, left, height and width of the part of the result to return; None returns all of it.

    Returns:
        (N, C, height, width) float, whole numbers in 0..255.
    """
    height, width = images.shape[-2:]
    top, left, rows, columns = crop or (0, 0, *size)
    horizontal = _weights(width, size[1], left, columns, resample)
    vertical = _weights(height, size[0], top, rows, resample)
    images = _bytes(images @ horizontal.T)
    return _bytes(vertical @ images)


def _bytes(values: Tensor) -> Tensor:
    return (values + 0.5).floor().clamp(0, 255)


def _weights(old: Any, new: Any, first: Any, count: Any, resample: Filter) -> Tensor:
    """Return the weight of each old pixel in each new one, (count, old)."""
    scale = old / new if isinstance(old, int) and isinstance(new, int) else _float(old) / _float(new)
    widened = torch.clamp(torch.as_tensor(scale, dtype=torch.float32), min=1.0)
    centres = (torch.arange(count) + first + 0.5) * scale
    distances = (torch.arange(old) + 0.5 - centres[:, None]) / widened
    weights = _bicubic(distances) if resample == "bicubic" else (1 - distances.abs()).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


def _float(size: Any) -> Tensor:
    return torch.as_tensor(size).float() if torch.jit.is_tracing() else torch.full((), size, dtype=torch.float32)


def _bicubic(x: Tensor) -> Tensor:
    """Return Pillow's cubic filter (a = -0.5)."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < _SUPPORT["bicubic"], far, 0.0))
