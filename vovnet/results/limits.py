"""The limits of a detector that cut what it finds, and one warning for all images that they affect."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vovnet.errors import InputError
from vovnet.results.detections import ImageDetections

SMALLEST_SIDE = 8.0
"""Objects with a smaller side, in pixels of the resized image, are hardly found: two cells of the finest map."""

MEDIAN_OBJECT = "median_object"
"""The key in ``preprocessing`` of a detector's ``config.json``: the median side of the training data's objects."""
MEDIAN_IMAGE = "median_image"
"""The key there of the median [height, width] of the training data's images."""
TRAINED_CROP = "trained_crop"
"""The key there of the side in pixels of the crops that a detector was trained on (``data.crop``)."""

_SHRUNK = 0.5
"""Objects with less than this share of the size that they had in training are hardly found, either."""
_SMALLEST_TILE = 32
_COMMON, _USUAL_OVERLAP = 1.25, 0.2
"""Neighbouring tiles shall have so many objects of the median side in common, and usually this share of their side."""
_LARGEST_SIZE = 1024
"""Tiles are not suggested with a larger short side after the resize: they take memory."""


class LimitWarning(RuntimeWarning):
    """A limit of a detector cut what it found, or its resize made objects too small to be found."""


@dataclass(frozen=True)
class Limits:
    """What bounds a detector; None where it does not say."""

    detections: int | None = None
    """The largest number of detections in an image."""
    min_size: float | None = None
    """An image is resized so that its short side has this many pixels, …"""
    max_size: float | None = None
    """… but its long side at most this many."""
    median_object: float | None = None
    """The median side in pixels of the objects that it shall find."""
    trained_factor: float | None = None
    """The factor by which the detector itself resizes an image of the size that most had in training."""
    crop: int | None = None
    """The side in pixels of the crops that it was trained on, if it was."""
    built_in: bool = False
    """True if the limit of detections cannot be changed, as in an exported file."""

    def reached(self, found: ImageDetections) -> bool:
        """Return True if the limit of detections cut what was found in an image, or in one of its tiles."""
        return self.detections is not None and _largest(found) >= self.detections

    def warn_of(self, found: Sequence[ImageDetections], stacklevel: int = 2) -> None:
        """Warn as :meth:`warn` for what was found in images, whole or in tiles."""
        self.warn([one.pass_size or one.size for one in found], list(map(_largest, found)), stacklevel + 1)

    def warn(self, shapes: Sequence[tuple[int, int]], counts: Sequence[int], stacklevel: int = 2) -> None:
        """Warn once for all images whose detections or objects a limit affects, and say what mends it.

        Args:
            shapes: height and width in pixels of each image, or of its tiles.
            counts: the number of detections in each image, or in the tile that has the most.
            stacklevel: as in ``warnings.warn`` in the place of this call; 2 names the caller of that function.
        """
        for message in (self._told_of_counts(counts), self._told_of_shapes(shapes)):
            if message:
                warnings.warn(message, LimitWarning, stacklevel=stacklevel + 1)

    def _told_of_counts(self, counts: Sequence[int]) -> str | None:
        limit = self.detections
        full = 0 if limit is None else sum(count >= limit for count in counts)
        if limit is None or not full:
            return None
        mend = "export the detector again with a larger one" if self.built_in else f"give --max-detections {3 * limit}"
        return (
            f"{full} of {len(counts)} images reached the limit of {limit} detections, so more objects may be there: "
            f"{mend} (model.box_detections_per_img)"
        )

    def _told_of_shapes(self, shapes: Sequence[tuple[int, int]]) -> str | None:
        median, least, most = self.median_object, self.min_size, self.max_size
        if median is None or not shapes or least is None or most is None:
            return None
        factors = resize_factor(shapes, least, most)
        bound = SMALLEST_SIDE / median
        if self.trained_factor is not None:
            bound = max(bound, _SHRUNK * self.trained_factor)
        small = factors[(factors < 1) & (factors < bound)]
        if not len(small):
            return None
        pixels = small.min() * median
        why = f"below {SMALLEST_SIDE:g}" if pixels < SMALLEST_SIDE else "less than half of what it had in training"
        tiles = self._fitting_options(median)
        return (
            f"{len(small)} of {len(shapes)} images are shrunk (model.min_size {least}, model.max_size {most}) so that "
            f"an object of the data's median size, {median:.3g} pixels, has only {pixels:.2g} pixels ({why}); many "
            f"will not be found: cut the images into tiles with {tiles}, or raise --size and --max-size"
        )

    def _fitting_options(self, median: float) -> str:
        """Return the options for tiles in which objects are as large as in training, and few are cut.

        Tiles may be larger than what the detector was trained on, if they are resized less: then fewer borders cut
        objects, and less is computed twice.
        """
        side, least = self.fitting_tile(), round(self.min_size or 1)
        if self.built_in or self.crop is not None:
            return tile_options(side, median)
        wanted = math.ceil(_COMMON * median / (_USUAL_OVERLAP * side))
        times = max(1, min(wanted, _LARGEST_SIZE // least))
        options = tile_options(times * side, median)
        if times > 1:
            options += f" --size {times * least}"
            options += f" --max-detections {times**2 * self.detections}" if self.detections else ""
        return options

    def fitting_tile(self) -> int:
        """Return the side in pixels of tiles in which objects are about as large for the detector as in training.

        It needs ``min_size`` and one of ``trained_factor`` and ``median_object``. With the latter alone, the median
        object gets twice :data:`SMALLEST_SIDE`. A detector that was trained on crops gets tiles of their size.
        """
        if self.crop is not None:
            return max(_SMALLEST_TILE, self.crop)
        factor = self.trained_factor or 2 * SMALLEST_SIDE / (self.median_object or 1)
        return max(_SMALLEST_TILE, round((self.min_size or 0) / factor))


def tile_options(side: int, median_object: float) -> str:
    """Return the options of ``vovnet predict`` for tiles with sides of so many pixels.

    Neighbours have 1.25 objects of the median side in common, in steps of 0.05 and at most half of a tile.
    """
    overlap = min(0.5, math.ceil(20 * _COMMON * median_object / side) / 20)
    return f"--tile {side}" + (f" --overlap {overlap:g}" if overlap > _USUAL_OVERLAP else "")


def _largest(found: ImageDetections) -> int:
    return len(found.scores) if found.pass_count is None else found.pass_count


def resize_factor(
    shapes: NDArray[Any] | Sequence[Sequence[int]], min_size: float, max_size: float
) -> NDArray[np.float64]:
    """Return the factor (I,) by which each image is resized: its short side to ``min_size``, its long side to at most
    ``max_size``.

    Args:
        shapes: (I, 2): height and width of each image in pixels.
        min_size: in pixels.
        max_size: in pixels.
    """
    sides = np.asarray(shapes, dtype=np.float64).reshape(-1, 2)
    return np.minimum(min_size / sides.min(axis=1), max_size / sides.max(axis=1))


def trained_factor(preprocessing: Mapping[str, Any]) -> float | None:
    """Return :attr:`Limits.trained_factor` from the ``preprocessing`` of a ``config.json``; None if it is not there."""
    sides, least, most = (preprocessing.get(key) for key in (MEDIAN_IMAGE, "min_size", "max_size"))
    if not isinstance(sides, list) or len(sides) != 2:
        return None
    numbers = [*sides, least, most]
    if not all(isinstance(one, int | float) and not isinstance(one, bool) and 0 < one < 1e6 for one in numbers):
        return None
    return float(resize_factor(np.array([sides]), numbers[2], numbers[3])[0])


def check_shape(height: int, width: int, longest: float | None, name: str) -> None:
    """Refuse an image that would have no pixels after the detector's resize, which rounds down.

    Args:
        height: in pixels.
        width: in pixels.
        longest: the detector's ``max_size``, or None if it does not say.
        name: begins the message.

    Raises:
        InputError: the image is empty or too narrow.
    """
    if min(height, width) < 1:
        raise InputError(f"{name}: the image has no pixels ({width}x{height})")
    if longest is not None and min(height, width) * longest < max(height, width):
        raise InputError(
            f"{name}: {width}x{height} pixels are too narrow for a detector whose longest side is {longest}; crop it"
        )
