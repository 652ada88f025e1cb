"""Pictures of a run: curves of losses and AP, precision over recall, a sheet of predictions.

Matplotlib is used through ``Figure`` objects alone: no display, no global state.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw

from vovnet.detection.drawing import category_colour, decode, draw_detections, draw_truth, label_font
from vovnet.errors import InputError
from vovnet.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from vovnet.detection.coco_metrics import CocoEvaluator

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
    records = _read_log(Path(metrics_jsonl))
    losses = _series(records, lambda key: key == "loss" or key.startswith("loss_"))
    scores = _series(
        records, lambda key: key in ("box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75")
    )
    rates = _series(records, lambda key: key == "lr")
    if not losses and not scores:
        raise InputError(f"{metrics_jsonl}: no losses and no AP in it; expected a run's metrics.jsonl")
    figure = _figure(12 if scores else 7, 5.2)
    grid = figure.add_gridspec(2, 2 if scores else 1, height_ratios=[4, 1])
    _plot_losses(figure.add_subplot(grid[0, 0]), losses)
    _plot_rate(figure.add_subplot(grid[1, 0]), rates)
    if scores:
        _plot_scores(figure.add_subplot(grid[:, 1]), scores)
    _save(figure, out_png)


def _read_log(path: Path) -> list[dict[str, Any]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("iteration"), int):
            records.append(record)
    return records


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
    figure = _figure(6.2 * len(panels), 5.4)
    for position, (kind, precision) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), position)
        _plot_precision(axes, precision, names)
        axes.set_title(f"precision over recall, {_KINDS.get(kind, kind)}", loc="left")
    _save(figure, out_png)


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
    samples: Sequence[tuple[Image.Image, Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]],
    out_png: str | os.PathLike[str],
    threshold: float = 0.5,
    columns: int = 4,
) -> None:
    """Lay pictures with their detections (coloured, labelled) and the true boxes (dashed) out on one sheet.

    Args:
        samples: for each picture the picture, its detections as :func:`vovnet.detection.predict` gives them, and its
            annotations in COCO's form (``bbox`` in pixels; may be empty).
        out_png: written atomically.
        threshold: detections with a lower score are not drawn.
        columns: pictures in a row, at most.

    Raises:
        InputError: no samples.
    """
    if not samples:
        raise InputError("plot_predictions: no pictures were given")
    side, gap, head = 384, 10, 44
    columns = min(columns, len(samples))
    rows = math.ceil(len(samples) / columns)
    sheet = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + gap) + gap + head), "white")
    for index, (image, detections, truth) in enumerate(samples):
        cell = _cell(image, detections, truth, threshold, side)
        x = gap + index % columns * (side + gap) + (side - cell.width) // 2
        y = head + gap + index // columns * (side + gap) + (side - cell.height) // 2
        sheet.paste(cell, (x, y))
    title = f"Detections with score ≥ {threshold:g}; dashed: the truth"
    ImageDraw.Draw(sheet).text((gap, 12), title, fill="#222222", font=label_font(20))
    with atomic_path(out_png) as temporary:
        sheet.save(temporary)


def _cell(
    image: Image.Image,
    detections: Sequence[Mapping[str, Any]],
    annotations: Sequence[Mapping[str, Any]],
    threshold: float,
    side: int,
) -> Image.Image:
    """One picture of the sheet, resized first so that lines and letters are as sharp as the sheet."""
    from pycocotools import mask as coco_mask

    scale = side / max(image.size)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    resized = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
    scaled = []
    for one in detections:
        entry = {**one, "bbox": [value * scale for value in one["bbox"]]}
        if "segmentation" in one and one["score"] >= threshold:
            mask = Image.fromarray(decode(one["segmentation"]).astype(np.uint8) * 255)
            smooth = np.asarray(mask.resize(size, Image.Resampling.BILINEAR)) > 127
            entry["segmentation"] = coco_mask.encode(np.asfortranarray(smooth.astype(np.uint8)))
        scaled.append(entry)
    truth = [{**one, "bbox": [value * scale for value in one["bbox"]]} for one in annotations]
    return draw_detections(draw_truth(resized, truth), scaled, threshold)


def _figure(width: float, height: float) -> Figure:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("plots need matplotlib, which is not installed: pip install 'vovnet[detection]'") from error
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, out_png: str | os.PathLike[str]) -> None:
    for axes in figure.axes:
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(out_png) as temporary:
        figure.savefig(temporary, format="png")
