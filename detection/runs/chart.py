"""Draw runs together: their losses and AP over the iterations, and what they took."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vovnet.detection.config.detectors import DETECTORS
from vovnet.detection.figures import add_legend, new_figure, save_figure
from vovnet.detection.runs.comparison import Comparison
from vovnet.detection.training.curves import smooth
from vovnet.results.lettering import drawable

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

COLOURS = ("#0b6e99", "#d9730d", "#2f7d4f", "#7a4fa3", "#b3261e", "#6b7177", "#a58a00", "#1b3a5c", "#c2578f", "#4aa3a2")


def draw_comparison(comparison: Comparison, out: str | os.PathLike[str]) -> None:
    """Draw losses, AP, time, speed and memory of runs, each in its own colour.

    Args:
        comparison: the runs.
        out: written atomically; the suffix selects the format (``.png``, ``.svg``).

    Raises:
        InputError: matplotlib is not installed.
    """
    count = len(comparison.runs)
    figure = new_figure(12, 5.4 + 0.22 * count)
    grid = figure.add_gridspec(2, 6, height_ratios=[4, 0.6 + 0.28 * count])
    _draw_losses(figure.add_subplot(grid[0, :3]), comparison)
    _draw_scores(figure.add_subplot(grid[0, 3:]), comparison)
    bars: tuple[tuple[str, list[float | None]], ...] = (
        ("time, minutes", [_scaled(run.seconds, 60) for run in comparison.runs]),
        ("images/s", [run.images_per_second for run in comparison.runs]),
        ("memory, GiB", [_scaled(run.memory, 2**30) for run in comparison.runs]),
    )
    for position, (title, values) in enumerate(bars):
        axes = figure.add_subplot(grid[1, 2 * position : 2 * position + 2])
        _draw_bars(axes, title, values, comparison.names if position == 0 else [])
    save_figure(figure, out)


def _draw_losses(axes: Axes, comparison: Comparison) -> None:
    entries: list[tuple[Artist, str]] = []
    for name, run, colour in _coloured(comparison):
        iterations = [line["iteration"] for line in run.losses]
        values = [float(line["loss"]) for line in run.losses]
        axes.plot(iterations, values, color=colour, alpha=0.2, linewidth=0.8)
        (line,) = axes.plot(iterations, smooth(values), color=colour, linewidth=1.8, marker=_marker(values))
        entries.append((line, drawable(name)))
    if all(line["loss"] > 0 for run in comparison.runs for line in run.losses):
        axes.set_yscale("log")
    axes.set_xlabel("iteration")
    axes.set_title("training loss", loc="left")
    add_legend(axes, entries, frameon=False, fontsize=9)


def _draw_scores(axes: Axes, comparison: Comparison) -> None:
    kinds: list[str] = []
    for _, run, colour in _coloured(comparison):
        kind = DETECTORS[run.recipe.model.detector].kept_by
        kinds.append(kind)
        lines = [line for line in run.evaluations if f"{kind}_ap" in line]
        axes.plot(
            [line["iteration"] for line in lines],
            [100 * line[f"{kind}_ap"] for line in lines],
            color=colour,
            linewidth=1.8,
            marker="o",
            markersize=3.5,
        )
        if run.best is not None:
            axes.plot(run.best["iteration"], 100 * run.best[f"{kind}_ap"], "*", color=colour, markersize=12)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("iteration")
    axes.set_title(f"{' or '.join(dict.fromkeys(kinds))} AP in percent (star: the best)", loc="left")


def _draw_bars(axes: Axes, title: str, values: Sequence[float | None], names: Sequence[str]) -> None:
    positions = range(len(values))
    axes.barh(positions, [value or 0 for value in values], color=[_colour(position) for position in positions])
    for position, value in zip(positions, values, strict=True):
        axes.text(value or 0, position, " –" if value is None else f" {value:.3g}", va="center", fontsize=8)
    labels = [drawable(name) for name in names] if names else [""] * len(values)
    axes.set_yticks(positions, labels, fontsize=8, parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlim(left=0)
    axes.tick_params(axis="x", labelsize=8)
    axes.set_title(title, loc="left", fontsize=10)


def _coloured(comparison: Comparison) -> list[tuple[str, Any, str]]:
    return [
        (name, run, _colour(position))
        for position, (name, run) in enumerate(zip(comparison.names, comparison.runs, strict=True))
    ]


def _colour(position: int) -> str:
    return COLOURS[position % len(COLOURS)]


def _marker(values: Sequence[float]) -> str | None:
    return "o" if len(values) == 1 else None


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit
