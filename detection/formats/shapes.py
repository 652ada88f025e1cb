"""Shapes of annotation programs as COCO's boxes and polygons."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vovnet.detection.formats.text import number_of

_CORNERS = 36
"""Corners of the polygon that stands for a circle or ellipse: its area is half a percent below the circle's."""


def enclosing_box(points: Sequence[float]) -> list[float]:
    """Return x, y, width, height of the box around points x0, y0, x1, y1, …"""
    xs, ys = points[::2], points[1::2]
    return [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]


def ellipse(cx: float, cy: float, rx: float, ry: float, theta: float = 0.0) -> list[float]:
    """Return a polygon x0, y0, … for an ellipse of two radii, turned by an angle in radians."""
    points: list[float] = []
    for number in range(_CORNERS):
        angle = 2 * math.pi * number / _CORNERS
        x, y = rx * math.cos(angle), ry * math.sin(angle)
        points += [cx + x * math.cos(theta) - y * math.sin(theta), cy + x * math.sin(theta) + y * math.cos(theta)]
    return points


def flat_points(value: object) -> list[float] | None:
    """Return [[x, y], …] as x0, y0, x1, y1, …, or None if it is something else."""
    if not isinstance(value, list):
        return None
    flat: list[float] = []
    for pair in value:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            return None
        for one in pair:
            number = number_of(one) if not isinstance(one, str) else None
            if number is None or not math.isfinite(number):
                return None
            flat.append(number)
    return flat
