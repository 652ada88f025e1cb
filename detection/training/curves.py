"""Plot the curves of a training run: losses, learning rate and average precision."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vovnet.detection.evaluation.coco_eval import percent
from vovnet.detection.figures import add_legend, new_figure, save_figure
from vovnet.detection.training.metrics_log import read_metrics
from vovnet.errors import InputError
from vovnet.results.lettering import drawable

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_KIND_COLOURS = {"box": "#0b6e99", "mask": "#d9730d", "keypoint": "#6b4c9a"}
_METRIC_STYLES = {"ap": "-", "ap50": "--", "ap75": ":"}

Curve = tuple[list[int], list[float]]
"""Iterations, and a value for each."""


def plot_curves(metrics_jsonl: str | os.PathLike[str], out_png: str | os.PathLike[str]) -> None:
    """Plot a run's ``metrics.jsonl``: losses (a faint line as logged, a strong line smoothed), learning rate, and AP.

    Args:
        metrics_jsonl: one JSON object a line, with ``iteration`` and numbers such as ``loss…``, ``lr``, ``box_ap``.
            Incomplete lines (of a run that was killed) are skipped.
        out_png: written atomically.

    Raises:
        InputError: the file is missing, or has neither losses nor AP.
    """
    records = read_metrics(Path(metrics_jsonl))
    losses = _series(records, lambda key: key == "loss" or key.startswith("loss_"))
    shown = {f"{kind}_{metric}" for kind in _KIND_COLOURS for metric in _METRIC_STYLES}
    scores = _series(records, lambda key: key in shown)
    rates = _series(records, lambda key: key == "lr")
    if not losses and not scores:
        raise InputError(f"{metrics_jsonl}: no losses and no AP in it; expected a run's metrics.jsonl")
    figure = new_figure(12 if scores else 7, 5.2)
    grid = figure.add_gridspec(2, 2 if scores else 1, height_ratios=[4, 1])
    _plot_losses(figure.add_subplot(grid[0, 0]), losses)
    _plot_rate(figure.add_subplot(grid[1, 0]), rates)
    if scores:
        _plot_scores(figure.add_subplot(grid[:, 1]), scores)
    save_figure(figure, out_png)


def _series(records: Iterable[Mapping[str, Any]], wanted: Callable[[str], bool]) -> dict[str, Curve]:
    """Return a curve for each wanted key, without values that are not finite and without -1 (nothing to count)."""
    series: dict[str, Curve] = {}
    for record in records:
        for key, value in record.items():
            if wanted(key) and isinstance(value, int | float) and 0 <= value <= sys.float_info.max:
                iterations, values = series.setdefault(key, ([], []))
                iterations.append(record["iteration"])
                values.append(float(value))
    return series


def smooth(values: Sequence[float]) -> list[float]:
    """Return the exponential moving average over a fiftieth of the curve (at least 5 points), unbiased at its start."""
    keep = 1 - 1 / max(5, len(values) / 50)
    total = weight = 0.0
    smoothed = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        smoothed.append(total / weight)
    return smoothed


def _plot_losses(axes: Axes, losses: Mapping[str, Curve]) -> None:
    entries: list[tuple[Artist, str]] = []
    for name, (iterations, values) in losses.items():
        whole = name == "loss"
        label = "sum" if whole else name.removeprefix("loss_").replace("_", " ")
        (line,) = axes.plot(
            iterations,
            smooth(values),
            linewidth=2.2 if whole else 1.4,
            color="#222222" if whole else None,
            marker="o" if len(values) == 1 else None,
        )
        axes.plot(iterations, values, color=line.get_color(), alpha=0.22, linewidth=0.8)
        entries.append((line, drawable(label)))
    if any(value > 0 for _, values in losses.values() for value in values):
        axes.set_yscale("log")
    axes.set_ylabel("loss")
    axes.set_title("training losses", loc="left")
    if losses:
        add_legend(axes, entries, frameon=False, fontsize=9, ncols=2)


def _plot_rate(axes: Axes, rates: Mapping[str, Curve]) -> None:
    for iterations, values in rates.values():
        axes.plot(iterations, values, color="#0b6e99", linewidth=1.4, marker="o" if len(values) == 1 else None)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("learning rate")
    axes.set_xlabel("iteration")


def _plot_scores(axes: Axes, scores: Mapping[str, Curve]) -> None:
    for name, (iterations, values) in scores.items():
        kind, metric = name.split("_")
        axes.plot(
            iterations,
            [100 * value for value in values],
            _METRIC_STYLES[metric],
            color=_KIND_COLOURS[kind],
            label=f"{kind} {metric.upper()}  {percent(values[-1])}",
            marker="o",
            markersize=3.5,
        )
    axes.set_ylim(0, 100)
    axes.set_xlabel("iteration")
    axes.set_title("average precision in percent (last value)", loc="left")
    axes.legend(frameon=False, fontsize=9)
