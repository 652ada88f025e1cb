"""Images of a run: curves of losses and AP, precision over recall, a sheet of predictions.

Matplotlib is used through ``Figure`` objects alone: no display, no global state.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from vovnet.detection.prediction.drawing import category_colour, prediction_sheet
from vovnet.detection.training.callbacks import read_metrics
from vovnet.errors import InputError
from vovnet.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vovnet.detection.evaluation.coco_eval import CocoEvaluator

_KINDS = {"bbox": "boxes", "segm": "masks"}
_IOU_COLOURS = {0.5: "#0b6e99", 0.75: "#d9730d", None: "#222222"}
_MAX_CLASS_LINES = 10


def plot_curves(metrics_jsonl: str | os.PathLike[str], out_png: str | os.PathLike[str]) -> None:
    """Plot a run's ``metrics.jsonl``: losses (faint as logged, strong smoothed), learning rate, and AP if evaluated.

    Args:
        metrics_jsonl: an object a line with ``iteration`` and ``loss…``, ``lr``, ``box_ap``, … as numbers. Lines that
            are not whole (a run that was killed) are left out.
        out_png: written atomically.

    Raises:
        InputError: the file is missing or has no losses or AP.
    """
    records = read_metrics(Path(metrics_jsonl))
    losses = _series(records, lambda key: key == "loss" or key.startswith("loss_"))
    scores = _series(
        records, lambda key: key in ("box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75")
    )
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


def _series(records: Iterable[Mapping[str, Any]], wanted: Any) -> dict[str, tuple[list[int], list[float]]]:
    """Iterations and finite values for each key; -1 (nothing to count) is left out."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    for record in records:
        for key, value in record.items():
            if wanted(key) and isinstance(value, int | float) and math.isfinite(value) and value >= 0:
                iterations, values = series.setdefault(key, ([], []))
                iterations.append(record["iteration"])
                values.append(float(value))
    return series


def _smooth(values: Sequence[float]) -> list[float]:
    """A running mean that forgets with a fiftieth of the curve (at least 5 points), unbiased at its start."""
    keep = 1 - 1 / max(5, len(values) / 50)
    total = weight = 0.0
    smoothed = []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        smoothed.append(total / weight)
    return smoothed


def _plot_losses(axes: Axes, losses: Mapping[str, tuple[list[int], list[float]]]) -> None:
    for name, (iterations, values) in losses.items():
        whole = name == "loss"
        label = "sum" if whole else name.removeprefix("loss_").replace("_", " ")
        (line,) = axes.plot(
            iterations,
            _smooth(values),
            label=label,
            linewidth=2.2 if whole else 1.4,
            color="#222222" if whole else None,
            marker="o" if len(values) == 1 else None,
        )
        axes.plot(iterations, values, color=line.get_color(), alpha=0.22, linewidth=0.8)
    if any(value > 0 for _, values in losses.values() for value in values):
        axes.set_yscale("log")
    axes.set_ylabel("loss")
    axes.set_title("training losses", loc="left")
    if losses:
        axes.legend(frameon=False, fontsize=9, ncols=2)


def _plot_rate(axes: Axes, rates: Mapping[str, tuple[list[int], list[float]]]) -> None:
    for iterations, values in rates.values():
        axes.plot(iterations, values, color="#0b6e99", linewidth=1.4, marker="o" if len(values) == 1 else None)
    axes.set_ylim(bottom=0)
    axes.set_ylabel("learning rate")
    axes.set_xlabel("iteration")


def _plot_scores(axes: Axes, scores: Mapping[str, tuple[list[int], list[float]]]) -> None:
    styles = {"ap": "-", "ap50": "--", "ap75": ":"}
    for name, (iterations, values) in scores.items():
        kind, metric = name.split("_")
        axes.plot(
            iterations,
            values,
            styles[metric],
            color="#0b6e99" if kind == "box" else "#d9730d",
            label=f"{kind} {metric.upper()}  {values[-1]:.3f}",
            marker="o",
            markersize=3.5,
        )
    axes.set_ylim(0, 1)
    axes.set_xlabel("iteration")
    axes.set_title("average precision (last value)", loc="left")
    axes.legend(frameon=False, fontsize=9)


def plot_precision_recall(
    source: CocoEvaluator | Mapping[str, np.ndarray[Any, Any]],
    out_png: str | os.PathLike[str],
    names: Sequence[str] | None = None,
) -> None:
    """Plot precision over recall: means over the classes at IoU 0.50, 0.75 and 0.50:0.95, and thin lines for each class
    at IoU 0.50 where there are at most ten.

    Args:
        source: an evaluator after ``summarize``, or for each IoU type (``bbox``, ``segm``) an array (10, 101, K) of
            precision, -1 where a class has no objects.
        out_png: written atomically.
        names: of the K classes, for an array.
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
        axes.set_title(f"precision over recall, {_KINDS.get(kind, kind)}", loc="left")
    save_figure(figure, out_png)


def _plot_precision(axes: Axes, precision: np.ndarray[Any, Any], names: Sequence[str] | None) -> None:
    recall = np.linspace(0, 1, precision.shape[1])
    counted = [int(index) for index in np.flatnonzero((precision > -1).any(axis=(0, 1)))]
    if 1 < len(counted) <= _MAX_CLASS_LINES:
        for index in counted:
            colour = [value / 255 for value in category_colour(index + 1)]
            label = f"{names[index] if names else f'class {index + 1}'}, IoU 0.50"
            axes.plot(recall, precision[0, :, index], color=colour, linewidth=1, alpha=0.7, label=label)
    for iou, line_colour in _IOU_COLOURS.items():
        rows = precision if iou is None else precision[[round((iou - 0.5) / 0.05)]]
        if counted:
            mean = rows[:, :, counted].mean(axis=(0, 2))
            label = f"IoU {'0.50:0.95' if iou is None else f'{iou:.2f}'}, AP {mean.mean():.3f}"
            axes.plot(recall, mean, color=line_colour, linewidth=2.2, label=label)
    if not counted:
        axes.text(0.5, 0.5, "no objects to count", ha="center", va="center")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    if counted:
        axes.legend(frameon=False, fontsize=9, loc="lower left")


def plot_predictions(
    detector: nn.Module,
    dataset: Any,
    out_png: str | os.PathLike[str],
    *,
    count: int = 8,
    threshold: float = 0.5,
) -> None:
    """Draw what a detector finds in images spread evenly over a dataset, beside the truth; see
    :func:`vovnet.detection.prediction.drawing.prediction_sheet`.

    Args:
        detector: as for :func:`vovnet.detection.predict`.
        dataset: follows the protocol of :mod:`vovnet.detection.data`; images of 1 or 3 channels.
        out_png: written atomically.
        count: images, at most.
        threshold: detections with a lower score are not drawn.
    """
    from vovnet.detection.prediction.predictor import predict

    count = min(count, len(dataset))
    samples = []
    for index in range(count):
        image, target = dataset[index * len(dataset) // count]
        pixels = image.as_subclass(Tensor).permute(1, 2, 0).numpy()
        pil_image = Image.fromarray(np.ascontiguousarray(pixels if pixels.shape[2] == 3 else pixels[:, :, 0]))
        corners = target["boxes"].as_subclass(Tensor).tolist()
        truth = [{"bbox": [x0, y0, x1 - x0, y1 - y0]} for x0, y0, x1, y1 in corners]
        samples.append((pil_image, predict(detector, [image.as_subclass(Tensor)])[0], truth))
    prediction_sheet(samples, out_png, threshold)


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, outside of pyplot's global state.

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
    """Write a figure atomically, in the form that the suffix names (``.png``, ``.svg``), in the house's style."""
    for axes in figure.axes:
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(out) as temporary:
        figure.savefig(temporary)
