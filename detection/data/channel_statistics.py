"""Mean and standard deviation of each channel of images that have more than colours."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from vovnet.images.arrays import Pixels

MOST_IMAGES = 100
"""Images that are measured; more change the third digit."""


class ChannelStatistics:
    """Sums over the pixels of images, each image with the same weight."""

    def __init__(self) -> None:
        self.count = 0
        self._means: npt.NDArray[np.float64] | None = None
        self._squares: npt.NDArray[np.float64] | None = None

    def add(self, pixels: Pixels) -> None:
        """Add an image (C, H, W), uint8 or floats in 0..1. One with another number of channels is left out."""
        scale = 255.0 if pixels.dtype == np.uint8 else 1.0
        values = pixels.reshape(pixels.shape[0], -1).astype(np.float64) / scale
        means, squares = values.mean(axis=1), (values**2).mean(axis=1)
        if self._means is None or self._squares is None:
            self._means, self._squares, self.count = means, squares, 1
        elif self._means.shape == means.shape:
            self._means, self._squares, self.count = self._means + means, self._squares + squares, self.count + 1

    @property
    def mean(self) -> list[float]:
        """Of each channel, for images in 0..1."""
        return [] if self._means is None else [round(float(one), 6) for one in self._means / self.count]

    @property
    def std(self) -> list[float]:
        """Of each channel, in the same unit; a channel that never changes has 1."""
        if self._means is None or self._squares is None:
            return []
        variances = self._squares / self.count - (self._means / self.count) ** 2
        found = [round(float(one), 6) for one in np.sqrt(np.maximum(variances, 0))]
        return [one if one > 0 else 1.0 for one in found]


def spread_positions(length: int, most: int = MOST_IMAGES) -> Iterable[int]:
    """Return positions from 0 to ``length`` - 1, at most so many, evenly spread."""
    step = max(1, -(-length // most))
    return range(0, length, step)
