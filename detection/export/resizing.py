"""Detectors' resizing, as operators that exporters take: sizes are computed in the graph, from the image's own."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from vovnet.export.resampling import pillow_resize, resizes_vertically_first, scalar

if TYPE_CHECKING:
    from collections.abc import Sequence

LARGEST_SIDE = 8192
"""Images of up to this side are resized to exactly torchvision's size; larger ones to a size that may differ by 1."""


@dataclass(frozen=True)
class Prepared:
    """Images as the network takes them."""

    images: Tensor
    """(N, C, H', W'), resized, normalised and padded to a multiple of the size divisor."""
    size: Tensor
    """(2,) float32: height and width of the resized image without padding."""
    original: Tensor
    """(2,) float32: height and width of the given image."""


class _Resizing(nn.Module):
    """The settings of a detector's ``transform``."""

    def __init__(self, transform: Any) -> None:
        super().__init__()
        self.min_size, self.max_size = int(transform.min_size[-1]), int(transform.max_size)
        self.divisor = int(transform.size_divisible)
        self.mean = nn.Buffer(_per_channel(transform.image_mean), persistent=False)
        self.std = nn.Buffer(_per_channel(transform.image_std), persistent=False)


class TorchvisionResizing(_Resizing):
    """Resizes as ``GeneralizedRCNNTransform`` does: bilinear without averaging, by the factor of its two limits.

    torchvision computes the new sides in float64 and truncates them, so that a side that should be 800 is 799 where
    float64 rounds down (models/detection/transform.py:25-72). Not all runtimes have float64, so the sides are computed
    with integers, and small tables say where float64 rounds down.
    """

    def __init__(self, transform: Any) -> None:
        super().__init__(transform)
        self.short_error = nn.Buffer(_rounding_errors(self.min_size), persistent=False)
        self.long_error = nn.Buffer(_rounding_errors(self.max_size), persistent=False)
        self.half_steps = nn.Buffer(_half_steps(max(self.min_size, self.max_size)), persistent=False)

    def forward(self, images: Tensor) -> Prepared:
        """Resize images (N, C, H, W): uint8 in 0..255 or float in 0..1."""
        height, width = images.shape[-2:]
        rows = _rounded_up(_side(height, width, self.min_size, self.max_size), self.divisor)
        columns = _rounded_up(_side(width, height, self.min_size, self.max_size), self.divisor)
        original = torch.stack([scalar(height), scalar(width)])
        size = self.sides(original)
        pixels = _lerp(images, 2, _taps(rows, original[0], size[0]))
        pixels = _lerp(pixels, 3, _taps(columns, original[1], size[1]))
        if images.dtype == torch.uint8:
            pixels = pixels / 255
        inside = (torch.arange(rows) < size[0])[:, None] & (torch.arange(columns) < size[1])
        pixels = torch.where(inside, (pixels - self.mean) / self.std, 0.0)
        return Prepared(pixels, size.float(), original.float())

    def sides(self, original: Tensor) -> Tensor:
        """Return height and width after the resize, (2,) int64, of those before it, (2,) int64."""
        short, long = torch.minimum(original[0], original[1]), torch.maximum(original[0], original[1])
        shorter = self.min_size * long <= self.max_size * short  # the factor is min_size / short, else max_size / long
        side = torch.where(shorter, self.min_size, self.max_size)
        divisor = torch.where(shorter, short, long)
        product = original * side
        exact = product // divisor
        place = divisor.clamp(max=LARGEST_SIDE).reshape(1)  # indexing by a scalar would read its value while tracing
        error = torch.where(shorter, self.short_error[place], self.long_error[place])
        rounded_down = (exact * divisor == product) & (error > self.half_steps[exact])
        return exact - rounded_down.to(torch.int64)


class LegacyResizing(_Resizing):
    """Resizes as the reference does: Pillow's bilinear filter, which averages, on bytes; BGR in 0..255 minus the mean.

    legacy/transform.py is the source. The order of the two directions is the installed Pillow's.

    Args:
        transform: the detector's.
        size: height and width of all images; None for images of all sizes.
    """

    def __init__(self, transform: Any, size: tuple[int, int] | None = None) -> None:
        super().__init__(transform)
        self.size = size

    def forward(self, images: Tensor) -> Prepared:
        """Resize images (N, C, H, W): uint8 in 0..255 or float in 0..1."""
        height, width = images.shape[-2:]
        rows, columns = self.sides(height, width)
        pixels = images.float() if images.dtype == torch.uint8 else (images * 255).round()
        if self.size is not None:
            order = resizes_vertically_first(self.size, self.sides(*self.size))
        else:
            order = resizes_vertically_first((scalar(height), scalar(width)), (scalar(rows), scalar(columns)))
        pixels = pillow_resize(pixels, (rows, columns), "bilinear", vertical_first=order).flip(1)
        pixels = (pixels - self.mean) / self.std
        padding = (0, _rounded_up(columns, self.divisor) - columns, 0, _rounded_up(rows, self.divisor) - rows)
        size = torch.stack([scalar(rows), scalar(columns)]).float()
        original = torch.stack([scalar(height), scalar(width)]).float()
        return Prepared(nn.functional.pad(pixels, padding), size, original)

    def sides(self, height: Any, width: Any) -> tuple[Any, Any]:
        """Return height and width after the resize; see ``resized_size`` in legacy/transform.py."""
        target = self._target(height, width)
        return _largest(target, target * height // width), _largest(target, target * width // height)

    def _target(self, height: Any, width: Any) -> Any:
        """Return the length of the short side: min_size, or what brings the long side closest to max_size."""
        short, long = _smallest(height, width), _largest(height, width)
        doubled = 2 * self.max_size * short + long
        limited = doubled // (2 * long)  # rounds half up
        tie = 1 - _smallest(doubled % (2 * long), 1)
        limited = _largest(1, limited - tie * (limited % 2))  # half to even, as Python rounds
        return _smallest(self.min_size, limited)


def _side(side: Any, other: Any, min_size: int, max_size: int) -> Any:
    """Return a side after the resize: ⌊side · min(min_size / short, max_size / long)⌋, in integers."""
    return _smallest(_largest(min_size, side * min_size // other), _smallest(max_size, side * max_size // other))


def _smallest(a: Any, b: Any) -> Any:
    """Return the minimum of two sizes; while TorchScript traces, sizes are tensors."""
    if torch.jit.is_tracing():
        return torch.minimum(torch.as_tensor(a), torch.as_tensor(b))
    return torch.sym_min(a, b)


def _largest(a: Any, b: Any) -> Any:
    if torch.jit.is_tracing():
        return torch.maximum(torch.as_tensor(a), torch.as_tensor(b))
    return torch.sym_max(a, b)


def _rounded_up(side: Any, divisor: int) -> Any:
    return (side + divisor - 1) // divisor * divisor


def _taps(count: Any, old: Tensor, new: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for ``count`` positions the two pixels to mix, (count,) int64 each, and the weight of the second.

    The arithmetic is that of ``torch.nn.functional.interpolate`` (``area_pixel_compute_source_index``).
    """
    scale = old.float() / new.float()
    source = ((torch.arange(count) + 0.5) * scale - 0.5).clamp(min=0)
    first = torch.minimum(source.floor().to(torch.int64), old - 1)
    return first, torch.minimum(first + 1, old - 1), source - first


def _lerp(images: Tensor, dim: int, taps: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    first, second, weight = taps
    weight = weight[:, None] if dim == 2 else weight
    low, high = images.index_select(dim, first).float(), images.index_select(dim, second).float()
    return low * (1 - weight) + high * weight


def _per_channel(values: Sequence[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None]


def _rounding_errors(side: int) -> Tensor:
    """Return for each divisor d by how much float64 rounds ``side / d`` down, relative, in units of 2⁻⁵³.

    (LARGEST_SIDE + 1,) float32; the last entry, for all larger divisors, is 0.
    """
    errors = [0.0]
    for divisor in range(1, LARGEST_SIDE):
        error = (1 - Fraction(side / divisor) * divisor / side) * 2**53
        errors.append(max(float(error), 0.0))
    return torch.tensor([*errors, 0.0], dtype=torch.float32)


def _half_steps(largest: int) -> Tensor:
    """Return for each integer k half the distance to the next lower float64, relative, in units of 2⁻⁵³."""
    numbers = np.arange(1, largest + 1, dtype=np.float64)
    steps = (numbers - np.nextafter(numbers, 0)) / 2 / numbers * 2.0**53
    return torch.tensor([1.0, *steps], dtype=torch.float32)
