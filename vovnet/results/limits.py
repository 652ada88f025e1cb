"""The limits of a detector that cut what it finds, and one warning for all images that they affect."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vovnet.errors import InputError

SMALLEST_SIDE = 8.0
"""Objects with a smaller side, in pixels of the resized image, are hardly found: two cells of the finest map."""

MEDIAN_OBJECT = "median_object"
"""The key in ``preprocessing`` of a detector's ``config.json``: the median side of the training data's objects."""


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

    def warn(self, shapes: Sequence[tuple[int, int]], counts: Sequence[int], stacklevel: int = 2) -> None:
        """Warn once for all images whose detections or objects a limit affects.

        Args:
            shapes: height and width of each image in pixels.
            counts: the number of detections in each image.
            stacklevel: as in ``warnings.warn`` in the place of this call; 2 names the caller of that function.
        """
        limit = self.detections
        full = 0 if limit is None else sum(count >= limit for count in counts)
        if full:
            warnings.warn(
                f"{full} of {len(counts)} images reached the limit of {limit} detections, so more objects may be "
                "there: raise model.box_detections_per_img",
                LimitWarning,
                stacklevel=stacklevel + 1,
            )
        if self.median_object is None or not shapes or self.min_size is None or self.max_size is None:
            return
        factors = resize_factor(shapes, self.min_size, self.max_size)
        small = factors[(factors < 1) & (factors * self.median_object < SMALLEST_SIDE)]
        if len(small):
            warnings.warn(
                f"{len(small)} of {len(shapes)} images are shrunk (model.min_size {self.min_size}, model.max_size "
                f"{self.max_size}) so that an object of the data's median size, {self.median_object:.3g} pixels, has "
                f"only {small.min() * self.median_object:.2g} pixels (below {SMALLEST_SIDE:g}); many will not be "
                "found: raise both, or cut the images into tiles",
                LimitWarning,
                stacklevel=stacklevel + 1,
            )


def resize_factor(
    shapes: NDArray[np.int64] | Sequence[Sequence[int]], min_size: float, max_size: float
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
