"""Plot precision over recall."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vovnet.detection.analysis.thresholds import OperatingPoint
from vovnet.detection.evaluation.coco_eval import CocoEvaluator, percent
from vovnet.detection.figures import add_legend, new_figure, save_figure
from vovnet.results.lettering import category_colour, drawable

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_KINDS = {"bbox": "boxes", "segm": "masks", "keypoints": "keypoints"}
_IOU_COLOURS = {0.5: "#0b6e99", 0.75: "#d9730d", None: "#222222"}
_MAX_CLASS_LINES = 10


def plot_precision_recall(
    source: CocoEvaluator | Mapping[str, NDArray[np.float64]],
    out_png: str | os.PathLike[str],
    names: Sequence[str] | None = None,
    best: Mapping[str, Sequence[OperatingPoint]] | None = None,
) -> None:
    """Plot precision over recall: the mean of all classes at IoU 0.50, 0.75 and 0.50:0.95, and if there are at most ten
    classes also a thin line for each at IoU 0.50.

    Args:
        source: an evaluator after ``summarize``, or an array (10, 101, K) of precision for each IoU type (``bbox``,
            ``segm``, ``keypoints``), with -1 for a class without objects.
        out_png: written atomically.
        names: names of the K classes, if ``source`` holds arrays.
        best: for an IoU type, the best score threshold of each class: a point on, or a little below, its line, because
            the line holds at each recall the best precision of any larger one. Drawn for at most ten classes.
    """
    if isinstance(source, Mapping):
        panels = {kind: np.asarray(values) for kind, values in source.items()}
    else:
        panels = {kind: source.precision(kind) for kind in source.evaluated}
        names = [
            str(category["name"]) for category in sorted(source.ground_truth["categories"], key=lambda one: one["id"])
        ]
    figure = new_figure(6.2 * len(panels), 5.4)
    for position, (kind, precision) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), position)
        _plot_precision(axes, precision, names)
        _mark_best(axes, (best or {}).get(kind, ()))
        axes.set_title(f"precision over recall, {_KINDS.get(kind, kind)}", loc="left")
    save_figure(figure, out_png)


def _mark_best(axes: Axes, best: Sequence[OperatingPoint]) -> None:
    if len(best) > _MAX_CLASS_LINES:
        return
    for index, point in enumerate(best):
        if point.true:
            colour = [value / 255 for value in category_colour(index + 1)]
            place = (point.recall, point.precision)
            axes.plot(*place, "o", color=colour, markeredgecolor="black", markersize=7, zorder=5)
            axes.annotate(
                f"score ≥ {point.threshold:.2f}", place, (5, 6), textcoords="offset points", fontsize=8, zorder=6
            )


def _plot_precision(axes: Axes, precision: NDArray[np.float64], names: Sequence[str] | None) -> None:
    recall = np.linspace(0, 1, precision.shape[1])
    counted = [int(index) for index in np.flatnonzero((precision > -1).any(axis=(0, 1)))]
    entries: list[tuple[Artist, str]] = []
    if 1 < len(counted) <= _MAX_CLASS_LINES:
        for index in counted:
            colour = [value / 255 for value in category_colour(index + 1)]
            (line,) = axes.plot(recall, precision[0, :, index], color=colour, linewidth=1, alpha=0.7)
            entries.append((line, f"{drawable(names[index]) if names else f'class {index + 1}'}, IoU 0.50"))
    for iou, line_colour in _IOU_COLOURS.items():
        rows = precision if iou is None else precision[[round((iou - 0.5) / 0.05)]]
        if counted:
            mean = rows[:, :, counted].mean(axis=(0, 2))
            (line,) = axes.plot(recall, mean, color=line_colour, linewidth=2.2)
            entries.append((line, f"IoU {'0.50:0.95' if iou is None else f'{iou:.2f}'}, AP {percent(mean.mean())}"))
    if not counted:
        axes.text(0.5, 0.5, "no objects to count", ha="center", va="center")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    if counted:
        add_legend(axes, entries, frameon=False, fontsize=9, loc="lower left")
