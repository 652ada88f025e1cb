"""Pillow's resizing of bytes as two matrix products, for exported models that must not depend on Pillow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import PIL
import torch
from torch import Tensor

Filter = Literal["bilinear", "bicubic"]

_HALF = 2048
"""Pillow's weights are multiples of 1 / 2048²."""


def pillow_resize(
    images: Tensor,
    size: tuple[Any, Any],
    resample: Filter,
    crop: tuple[Any, Any, Any, Any] | None = None,
    *,
    vertical_first: bool | Tensor = False,
) -> Tensor:
    """Resize as ``PIL.Image.resize`` does: averaging when it shrinks, rounding to bytes after each direction.

    As in Pillow, weights are integers, and so are their sums. They are held in two float32 of at most 24 bits, so that
    no runtime rounds them, in whichever order it adds. The bytes are Pillow's, but for bicubic ones in OpenVINO: it has
    no float64, so that some weights differ in the last bit, and a byte where that decides.

    Args:
        images: (N, C, H, W) float, whole numbers in 0..255.
        size: height and width of the result; symbolic sizes, or with a ``crop`` tensors () int64.
        resample: Pillow's filter.
        crop: top, left, height and width of the part of the result to return; None returns all of it. Top and left may
            be tensors. Where it reaches beyond the result, the result's edge is repeated.
        vertical_first: which direction is first, see :func:`resizes_vertically_first`. A tensor () selects one of both.

    Returns:
        (N, C, height, width) float, whole numbers in 0..255.
    """
    height, width = images.shape[-2:]
    top, left, rows, columns = crop or (None, None, *size)
    horizontal = _weights(width, size[1], left, columns, resample)
    vertical = _weights(height, size[0], top, rows, resample)
    if isinstance(vertical_first, Tensor):
        rows_first = vertical.rows(horizontal.columns(images))
        return torch.where(vertical_first, horizontal.columns(vertical.rows(images)), rows_first)
    if vertical_first:
        return horizontal.columns(vertical.rows(images))
    return vertical.rows(horizontal.columns(images))


def resizes_vertically_first(old: tuple[Any, Any], new: tuple[Any, Any]) -> Any:
    """Return whether the installed Pillow begins with an image's columns: 13 does, where far more rows than columns go.

    Earlier versions always begin with the rows. Only the bytes between the two directions are rounded differently.

    Args:
        old: height and width, numbers or tensors.
        new: height and width after resizing.

    Returns:
        A bool; a tensor () if the sizes are tensors, but False for earlier versions.
    """
    if pillow_version() < 13:
        return False
    return (new[0] < old[0]) & (old[0] - new[0] > 2 * (old[1] - new[1]))


def pillow_version() -> int:
    """Return the first number of the installed Pillow's version."""
    return int(PIL.__version__.split(".")[0])


def scalar(size: Any) -> Tensor:
    """Return a size as a tensor () int64. In a graph it follows the image's size."""
    if isinstance(size, Tensor):
        return size
    return torch.as_tensor(size) if torch.jit.is_tracing() else torch.full((), size, dtype=torch.int64)


@dataclass(frozen=True)
class _Weights:
    """The weights of old pixels in new ones, (new, old): ``high`` / 2048 + ``low`` / 2048², all whole numbers."""

    high: Tensor
    low: Tensor

    def columns(self, images: Tensor) -> Tensor:
        """Return images (N, C, H, old) as (N, C, H, new)."""
        return _bytes(images @ self.high.T, images @ self.low.T)

    def rows(self, images: Tensor) -> Tensor:
        """Return images (N, C, old, W) as (N, C, new, W)."""
        return _bytes(self.high @ images, self.low @ images)


def _bytes(high: Tensor, low: Tensor) -> Tensor:
    """Round sums half up."""
    return ((high + _HALF / 2 + (low / _HALF).floor()) / _HALF).floor().clamp(0, 255)


def _weights(old: Any, new: Any, first: Any, count: Any, resample: Filter) -> _Weights:
    """Return the weights of ``old`` pixels in the new ones ``first``, ``first`` + 1, …, ``first`` + ``count`` - 1."""
    olds, news = scalar(old), scalar(new)
    places = torch.arange(count)
    if first is not None:
        places = torch.minimum((places + first).clamp(min=0), news - 1)
    unit = 2 * torch.maximum(olds, news)  # a new pixel's width, or an old one's if that is larger
    distances = ((2 * torch.arange(old) + 1) * news - (2 * places[:, None] + 1) * olds).abs()
    if resample == "bicubic":
        values = _bicubic(distances, unit)
        values = (values / values.sum(1, keepdim=True) * _HALF**2).round()
        high = (values / _HALF).floor()
        return _Weights(high.float(), (values - high * _HALF).float())
    shares = (unit - distances).clamp(min=0)
    total = shares.sum(1, keepdim=True)
    whole = shares * _HALF // total
    rest = shares * _HALF - whole * total
    return _Weights(whole.float(), (rest.float() / total.float() * _HALF).round())


def _bicubic(distances: Tensor, unit: Tensor) -> Tensor:
    """Return Pillow's cubic filter (a = -0.5) at distances from 0, in units.

    It is factored, and differences are taken of integers, because its terms would cancel in OpenVINO's float32.
    """
    x = distances.double() / unit.double()
    one_minus = (unit - distances).double() / unit.double()
    two_minus = (2 * unit - distances).double() / unit.double()
    near = one_minus * (2 + 2 * x - 3 * x * x) / 2
    far = one_minus * two_minus * two_minus / 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))
