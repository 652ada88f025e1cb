"""Matplotlib figures that need no display."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vovnet.errors import InputError, reason
from vovnet.files import atomic_path
from vovnet.terminal.text import printable

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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


def save_figure(figure: Figure, out: str | os.PathLike[str], *, grid: bool = True) -> None:
    """Write a figure atomically, without a frame.

    Args:
        figure: from :func:`new_figure`.
        out: the suffix selects the format (``.png``, ``.svg``).
        grid: with a light grid.
    """
    for axes in figure.axes:
        if grid:
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
