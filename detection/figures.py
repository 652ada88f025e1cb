"""Matplotlib figures that need no display, and a colour for each category."""

from __future__ import annotations

import colorsys
import os
from typing import TYPE_CHECKING

from vovnet.errors import InputError
from vovnet.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rgb = tuple[int, int, int]

_GOLDEN = 0.618033988749895


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure that does not use pyplot's global state.

    Args:
        width: in inches.
        height: in inches.

    Raises:
        InputError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("plots need matplotlib, which is not installed: pip install 'vovnet[detection]'") from error
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, out: str | os.PathLike[str]) -> None:
    """Write a figure atomically, with a light grid and no frame; the suffix selects the format (``.png``, ``.svg``)."""
    for axes in figure.axes:
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(out) as temporary:
        figure.savefig(temporary)


def category_colour(category_id: int) -> Rgb:
    """Return the colour of a category. It is vivid, and close ids get colours that differ much."""
    hue = (0.40 + category_id * _GOLDEN) % 1
    # Saturation and brightness change after every eight ids, which keeps the many classes of COCO apart.
    saturation, value = ((0.85, 0.95), (0.55, 1.0), (0.95, 0.7))[category_id // 8 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)
