"""Outlines of masks as polygons, for programs in which people correct them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TOLERANCE = 0.75  # pixels by which a polygon may leave the outline; corrected by hand, it needs few points


def outlines(mask: NDArray[np.bool_], tolerance: float = _TOLERANCE) -> list[list[float]]:
    """Return the outer outline of each piece of a mask as ``[x0, y0, x1, y1, …]`` in pixels, the largest first.

    Holes are filled, and pieces of a single pixel's width may vanish.

    Args:
        mask: (H, W). The first pixel spans 0 to 1.
        tolerance: largest distance in pixels of a point that is left out.
    """
    from contourpy import FillType, contour_generator

    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return []
    part = np.pad(mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1], 1).astype(np.float64)
    filled: Any = contour_generator(z=part, fill_type=FillType.OuterOffset).filled(0.5, math.inf)
    pieces, offsets = filled
    found = []
    for points, ends in zip(pieces, offsets, strict=True):
        # A pixel's value is at its middle, and the padding is one pixel.
        ring = points[: int(ends[1]) - 1] + np.array([columns[0] - 0.5, rows[0] - 0.5])
        ring = simplified(ring, tolerance)
        if len(ring) >= 3:
            found.append((_area(ring), ring))
    return [ring.ravel().tolist() for _, ring in sorted(found, key=lambda one: -one[0])]


def simplified(ring: NDArray[np.float64], tolerance: float) -> NDArray[np.float64]:
    """Return the points of a closed line (N, 2) that keep it within a tolerance (Douglas and Peucker, 1973)."""
    if len(ring) <= 3:
        return ring
    far = int(np.square(ring - ring[0]).sum(axis=1).argmax())
    closed = np.concatenate((ring, ring[:1]))
    kept = np.zeros(len(closed), dtype=np.bool_)
    kept[[0, far]] = True
    parts = [(0, far), (far, len(ring))]
    while parts:
        start, end = parts.pop()
        if end - start < 2:
            continue
        between = closed[start + 1 : end] - closed[start]
        along = closed[end] - closed[start]
        length = float(np.hypot(*along))
        crossed = np.abs(between[:, 0] * along[1] - between[:, 1] * along[0])
        distances = crossed / length if length else np.hypot(between[:, 0], between[:, 1])
        worst = int(distances.argmax())
        if distances[worst] > tolerance:
            middle = start + 1 + worst
            kept[middle] = True
            parts += [(start, middle), (middle, end)]
    return ring[kept[:-1]]


def _area(ring: NDArray[np.float64]) -> float:
    x, y = ring.T
    return abs(float(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))) / 2
