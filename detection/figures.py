"""Matplotlib figures that need no display, and a colour for each category."""

from __future__ import annotations

import colorsys
import contextlib
import functools
import importlib.util
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import ImageFont

from vovnet.errors import InputError, reason
from vovnet.files import atomic_path
from vovnet.terminal.text import printable, shortened

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

Rgb = tuple[int, int, int]

_GOLDEN = 0.618033988749895


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure that does not use pyplot's global state.

    Args:
        width: in inches.
        height: in inches.

    Raises:
        InputError: matplotlib is not installed, or its import fails.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise InputError("plots need matplotlib, which is not installed: pip install matplotlib") from error
    except Exception as error:  # an installation that is damaged or for another NumPy raises almost anything
        raise InputError(
            f"plots need matplotlib, whose import fails ({type(error).__name__}: {reason(error)}); install it anew: "
            "pip install --force-reinstall matplotlib"
        ) from error
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


@contextlib.contextmanager
def warn_without_plot(out: str | os.PathLike[str]) -> Iterator[None]:
    """Turn any error of drawing into a warning: the numbers of a plot are worth more than the plot.

    Args:
        out: the file that the ``with`` block writes. After an error there is none, not even that of an earlier run.
    """
    try:
        yield
    except Exception as error:  # Matplotlib, its plugins and a broken installation raise almost anything
        with contextlib.suppress(OSError):
            Path(out).unlink(missing_ok=True)
        why = str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {reason(error)}"
        warnings.warn(f"{out}: this plot was not drawn ({printable(why)})", RuntimeWarning, stacklevel=3)


def add_legend(axes: Axes, entries: Sequence[tuple[Artist, str]], **options: Any) -> None:
    """Add a legend whose labels are any text: a ``$`` begins no formula, and a leading ``_`` hides no entry.

    Args:
        axes: where to put it.
        entries: lines or the like, each with its label.
        options: keyword arguments of Matplotlib's ``Axes.legend``.
    """
    # Matplotlib leaves out labels that begin with "_", therefore the texts are set afterwards.
    legend = axes.legend([artist for artist, _ in entries], ["-"] * len(entries), **options)
    for shown, (_, label) in zip(legend.get_texts(), entries, strict=True):
        shown.set_parse_math(False)
        shown.set_usetex(False)
        shown.set_text(label)


@functools.lru_cache(maxsize=16)
def label_font(size: int) -> Font:
    """Return a font of ``size`` pixels: Matplotlib's DejaVu, which has most alphabets, otherwise Pillow's default."""
    spec = importlib.util.find_spec("matplotlib")  # not imported: that costs time, and a broken one still has its fonts
    if spec is not None and spec.origin is not None:
        path = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf" / "DejaVuSans.ttf"
        with contextlib.suppress(OSError):
            return ImageFont.truetype(str(path), size)
    return ImageFont.load_default(size)


def drawable(text: str, most: int = 40) -> str:
    """Return a text from data in a form that plots and drawings can show: one line of letters that the font has.

    Args:
        text: any text, such as the name of a category.
        most: the largest number of characters; a longer text loses its middle.

    Returns:
        The text with an escape such as ``\\u4e2d`` for a character that :func:`label_font` lacks; ``""`` in quotes for
        a text of nothing but spaces.
    """
    line = " ".join(printable(text).split()) or '""'
    return shortened("".join(one if _has_glyph(one) else ascii(one)[1:-1] for one in line), most)


@functools.lru_cache(maxsize=4096)
def _has_glyph(character: str) -> bool:
    font = label_font(16)
    try:
        # A font draws the same box for every character that it lacks, such as U+FFFF, which is none.
        return character == " " or bytes(font.getmask(character)) != bytes(font.getmask("\uffff"))
    except ValueError:  # a Pillow without FreeType has a font of Latin-1 only
        return False


def category_colour(category_id: int) -> Rgb:
    """Return the colour of a category. It is vivid, and close ids get colours that differ much."""
    hue = (0.40 + category_id * _GOLDEN) % 1
    # Saturation and brightness change after every eight ids, which keeps the many classes of COCO apart.
    saturation, value = ((0.85, 0.95), (0.55, 1.0), (0.95, 0.7))[category_id // 8 % 3]
    red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)
