"""Tiles of a large image: where they lie, and one call of a detector after another over them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from vovnet.errors import InputError, shown
from vovnet.results.detections import ImageDetections
from vovnet.results.merging import MergeRule, Part, merged


class Region(NamedTuple):
    """A rectangle of an image in pixels; the last row and column do not belong to it."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.bottom - self.top, self.right - self.left


@dataclass(frozen=True)
class Tiling:
    """How large images are cut.

    Attributes:
        side: of a tile in pixels. An image that is not larger in either direction is not cut.
        overlap: share of its side that a tile has in common with the next one, from 0 to below 1.
        full_image: the whole image is another tile, in which objects larger than the overlap are seen whole.
        merge: the rule of :func:`vovnet.results.merging.merged`.

    Raises:
        InputError: a value is out of its bounds.
    """

    side: int
    overlap: float = 0.2
    full_image: bool = False
    merge: MergeRule = "auto"

    def __post_init__(self) -> None:
        if isinstance(self.side, bool) or not isinstance(self.side, int) or self.side < 32:
            raise InputError(f"tile: expected a number of pixels of at least 32, got {shown(self.side)}")
        if isinstance(self.overlap, bool) or not 0 <= self.overlap <= 0.9:
            raise InputError(f"overlap: expected a share from 0 to 0.9, got {shown(self.overlap)}")
        if self.merge not in get_args(MergeRule):
            raise InputError(f"merge: expected one of {', '.join(get_args(MergeRule))}, got {shown(self.merge)}")

    def regions(self, height: int, width: int) -> list[Region]:
        """Return the tiles of an image, row by row; the last of a row and of a column end with the image."""
        return [
            Region(top, left, min(top + self.side, height), min(left + self.side, width))
            for top in self._starts(height)
            for left in self._starts(width)
        ]

    def _starts(self, length: int) -> list[int]:
        if length <= self.side:
            return [0]
        step = self.side - int(self.overlap * self.side)
        starts = list(range(0, length - self.side, step))
        return [*starts, length - self.side]


def detect_in_tiles(
    size: tuple[int, int],
    tiling: Tiling,
    detect: Callable[[Sequence[Region]], Sequence[ImageDetections]],
    batch_size: int = 1,
) -> ImageDetections:
    """Detect in the tiles of an image, and merge what was found.

    Args:
        size: height and width of the image in pixels.
        tiling: how it is cut.
        detect: returns the detections of regions, with boxes in the region's pixels. It is called once for an image of
            one tile, whose detections are returned as they are.
        batch_size: the largest number of tiles in a call.
    """
    regions = tiling.regions(*size)
    if len(regions) == 1:
        return detect(regions)[0]
    parts: list[Part] = []
    for start in range(0, len(regions), batch_size):
        batch = regions[start : start + batch_size]
        parts += [(region, found) for region, found in zip(batch, detect(batch), strict=True)]
    if tiling.full_image:
        whole = Region(0, 0, *size)
        parts.append((whole, detect([whole])[0]))
    return merged(parts, size, tiling.merge)


def part_of(pixels: NDArray[np.uint8], region: Region) -> NDArray[np.uint8]:
    """Return the pixels of a region, a view of an image (C, H, W)."""
    return pixels[:, region.top : region.bottom, region.left : region.right]
