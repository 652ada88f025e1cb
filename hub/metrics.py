"""The metrics on a model card: those of a training run's evaluation, or the authors' own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vovnet.checkpoints.sources import source_of_file
from vovnet.detection.checkpoints.torchvision_detectors import TorchvisionDetector, metric_name
from vovnet.detection.config.detectors import DETECTORS
from vovnet.detection.config.schema import Recipe
from vovnet.detection.training.metrics_log import read_metrics
from vovnet.detection.zoo.published import PublishedRow
from vovnet.errors import is_text
from vovnet.hub.manifest import PublishedFile

METRICS_FILE = "metrics.jsonl"
UNNAMED = "data that its publisher has not named"
"""The name on a card of data that the publisher has not named."""

_AUTHORS = "the authors' table, not measured by us"
_IMAGENET_CLASSES = 1000
_KINDS = {"bbox": "box", "segm": "mask", "keypoints": "keypoint"}


@dataclass(frozen=True)
class Metrics:
    """Metrics of one task on one dataset."""

    task: str
    """The Hub's name of the task."""
    dataset: str
    """The name of the data that was measured, never that of the training data."""
    dataset_type: str
    values: Mapping[str, float]
    """Values in percent, by the metric's name."""
    claimed_by: str | None = None
    """The source of numbers that were not measured here; :attr:`address` is its URL."""
    address: str | None = None
    part: str | None = None
    """The part of the dataset that was measured, such as ``validation data, val.json``."""


@dataclass(frozen=True)
class ClassMetrics:
    """Metrics of one category."""

    name: str
    objects: int
    """The number of its objects in the data that was measured."""
    values: Mapping[str, float | None]
    """Values in percent, by the metric's name; None if there was nothing to count."""


def published_metrics(row: PublishedRow) -> tuple[Metrics, ...]:
    """Return the authors' metrics of a published detector."""
    tables = {"object-detection": ("box", row.box), "image-segmentation": ("mask", row.mask)}
    names = ("AP", "APs", "APm", "APl")
    return tuple(
        Metrics(
            task,
            "COCO 2014 minival",
            "coco",
            {f"{kind} {name}": value for name, value in zip(names, values, strict=True)},
            _AUTHORS,
            "https://github.com/stigma0617/maskrcnn-benchmark-vovnet",
        )
        for task, (kind, values) in tables.items()
        if values
    )


def torchvision_metrics(source: TorchvisionDetector) -> tuple[Metrics, ...]:
    """Return the metrics that torchvision states of one of its detectors."""
    tasks = {"box": "object-detection", "mask": "image-segmentation", "keypoint": "keypoint-detection"}
    (data, stated), *_ = source.weights.meta["_metrics"].items()
    named = {metric_name(name): value for name, value in stated.items()}
    return tuple(
        Metrics(
            tasks[name.partition(" ")[0]],
            data,
            "coco",
            {name: value},
            "torchvision's table, not measured by us",
            "https://docs.pytorch.org/vision/stable/models.html",
        )
        for name, value in named.items()
    )


def kept_evaluation(folder: Path, run: Recipe | None) -> Mapping[str, Any] | None:
    """Return the line of the evaluation whose weights a run kept: the best by the AP that the detector is kept by."""
    path = folder / METRICS_FILE
    if run is None or not path.is_file():
        return None
    key = f"{DETECTORS[run.model.detector].kept_by}_ap"
    rows = [row for row in read_metrics(path) if _is_counted(row.get(key))]
    return max(rows, key=lambda row: row[key], default=None)


def run_metrics(run: Recipe | None, kept: Mapping[str, Any] | None, eval_data: str | None) -> tuple[Metrics, ...]:
    """Return the metrics of a run's evaluation, under the publisher's name for the data that it was measured on."""
    if run is None or kept is None:
        return ()
    names = {"ap": "AP", "ap50": "AP50", "ap75": "AP75", "aps": "APs", "apm": "APm", "apl": "APl"}
    found = []
    for task, kind in (("object-detection", "box"), ("image-segmentation", "mask"), ("keypoint-detection", "keypoint")):
        values = {
            f"{kind} {name}": _percent(kept[f"{kind}_{short}"])
            for short, name in names.items()
            if _is_counted(kept.get(f"{kind}_{short}"))
        }
        if values:
            found.append(Metrics(task, eval_data or UNNAMED, "custom", values, part=_measured_part(run)))
    return tuple(found)


def metrics_by_class(kept: Mapping[str, Any] | None) -> tuple[ClassMetrics, ...]:
    """Return AP and AP50 of each category, in the order of the labels; nothing if the run's file does not hold them."""
    tables = kept.get("per_class") if kept else None
    if not isinstance(tables, dict):
        return ()
    rows = {kind: tables[kind] for kind in _KINDS if isinstance(tables.get(kind), list)}
    if "bbox" not in rows or not all(_is_class_row(entry) for table in rows.values() for entry in table):
        return ()
    if len({tuple(entry["name"] for entry in table) for table in rows.values()}) != 1:
        return ()
    return tuple(
        ClassMetrics(
            entries[0]["name"],
            entries[0]["objects"],
            {
                f"{_KINDS[kind]} {name}": _percent(entry[name]) if _is_counted(entry.get(name)) else None
                for kind, entry in zip(rows, entries, strict=True)
                for name in ("AP", "AP50")
            },
        )
        for entries in zip(*rows.values(), strict=True)
    )


def published_classifier_metrics(
    architecture: str, source: PublishedFile | None, cfg: Mapping[str, Any], num_classes: int
) -> tuple[Metrics, ...]:
    """Return the publisher's top-1 accuracy if the file is theirs and its classifier was kept.

    Args:
        architecture: The network's name in this package.
        source: The file that the weights were converted from.
        cfg: timm's ``pretrained_cfg``. It has the tag of a published file whose checksum was known.
        num_classes: The number of classes that the folder's network tells apart.
    """
    known = source_of_file(source.file) if source else None
    if known is None or known.network != architecture or num_classes != _IMAGENET_CLASSES:
        return ()
    if known.sha1 is not None and known.name != f"{architecture}.{cfg.get('tag')}":
        return ()
    values = {"accuracy": round(100 - known.top1_error, 2)}
    claimed_by = _AUTHORS if known.sha1 is None else f"{known.publisher}'s table, not measured by us"
    task, dataset = "image-classification", "ImageNet-1k validation, top-1"
    return (Metrics(task, dataset, "imagenet-1k", values, claimed_by, known.origin),)


def _measured_part(run: Recipe) -> str:
    """Return which data a run was evaluated on: the names of the annotation files, without their folders."""
    train, val = run.data.train, run.data.val
    kind = "training data itself" if val and all(source in train for source in val) else "validation data"
    names = [re.split(r"[/\\]", source.labels)[-1] + (f" ({source.split})" if source.split else "") for source in val]
    return ", ".join([kind, *names])


def _is_class_row(entry: object) -> bool:
    return isinstance(entry, dict) and is_text(entry.get("name")) and type(entry.get("objects")) is int


def _percent(value: float) -> float:
    return round(100 * value, 2)


def _is_counted(value: object) -> bool:
    """Return True if an entry is a number in 0..1; -1 means that there was nothing to count."""
    return isinstance(value, int | float) and 0 <= value <= 1
