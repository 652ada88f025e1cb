"""Everything that is told about an evaluation beyond AP, and its files of numbers."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vovnet.detection.analysis.confusion import confusion_matrix
from vovnet.detection.analysis.matching import IGNORED, MatchedImage, matched_images
from vovnet.detection.analysis.thresholds import (
    OperatingPoint,
    ThresholdCurve,
    chosen_points,
    counting_points,
    threshold_curves,
)
from vovnet.detection.analysis.tide import KINDS, ErrorKinds, error_kinds
from vovnet.files import atomic_path

if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval

ALL = "all"
"""The name, in tables, of the row for all classes together."""


@dataclass(frozen=True)
class ImageErrors:
    """The errors in one image, each class at its best threshold."""

    image_id: int
    missed: int
    false: int

    @property
    def total(self) -> int:
        """Missed objects and false detections."""
        return self.missed + self.false


@dataclass(frozen=True)
class Analysis:
    """What :func:`analyse` finds for K classes. A match needs an IoU of 0.5, or an OKS of 0.5 for keypoints."""

    iou_type: str
    names: list[str]
    curves: list[ThresholdCurve]
    best: list[OperatingPoint]
    """For each class, the point with the largest F1."""
    overall: OperatingPoint
    """The point with the largest F1 if all classes have the same threshold."""
    confusion: NDArray[np.int64]
    """(K + 1, K + 1), at the threshold of ``overall``; see :func:`~.confusion.confusion_matrix`."""
    counting: list[OperatingPoint]
    """For each class, the point at which there are as many detections as objects."""
    count_error: list[float]
    """For each class, by how many the detections of an image differ from its objects at the point of ``counting``;
    the mean over all images."""
    count_bias: list[float]
    """The same with its sign: above 0 there are too many detections."""
    errors: ErrorKinds | None
    """None for keypoints, because TIDE tells kinds of errors apart by overlapping areas."""
    images: list[ImageErrors]
    """The errors of every image, the image with the most errors first."""

    def numbers(self) -> dict[str, Any]:
        """Return what ``metrics.json`` says of all classes: ``best`` and, if there are kinds of errors, ``errors``."""
        if self.errors is None:
            return {"best": _point(self.overall)}
        kinds = {name: {"count": self.errors.counts[name], "dAP50": self.errors.costs[name]} for name in KINDS}
        return {"best": _point(self.overall), "errors": {"AP50": self.errors.ap50, **kinds}}

    def class_numbers(self) -> list[dict[str, Any]]:
        """Return what ``metrics.json`` says of each class."""
        rows = zip(self.best, self.counting, self.count_error, self.count_bias, strict=True)
        return [
            {**_point(best), "count_threshold": point.threshold, "count_error": error, "count_bias": bias}
            for best, point, error, bias in rows
        ]


def _point(point: OperatingPoint) -> dict[str, float]:
    return {"threshold": point.threshold, "precision": point.precision, "recall": point.recall, "F1": point.f1}


def analyse(evaluated: COCOeval) -> Analysis:
    """Explain an evaluation of boxes, masks or keypoints.

    Args:
        evaluated: from :func:`vovnet.detection.evaluation.backends.run_coco_eval`.
    """
    kind, images = evaluated.params.iouType, list(matched_images(evaluated))
    names = [str(evaluated.cocoGt.cats[category]["name"]) for category in evaluated.params.catIds]
    curves = threshold_curves(images, len(names))
    best, overall = chosen_points(curves)
    false, missed = _errors(images, best)
    counting = counting_points(curves)
    surplus, lack = _errors(images, counting)
    difference = surplus - lack
    listed = [
        ImageErrors(one.image_id, int(lost.sum()), int(wrong.sum()))
        for one, lost, wrong in zip(images, missed, false, strict=True)
    ]
    return Analysis(
        kind,
        names,
        curves,
        best,
        overall,
        confusion_matrix(images, len(names), overall.threshold),
        counting,
        np.abs(difference).mean(axis=0).tolist(),
        difference.mean(axis=0).tolist(),
        None if kind == "keypoints" else error_kinds(images, len(names), evaluated.params.maxDets[-1]),
        sorted(listed, key=lambda one: (-one.total, one.image_id)),
    )


def _errors(
    images: Sequence[MatchedImage], points: Sequence[OperatingPoint]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return false detections and missed objects of each class in each image, (I, K), at each class's point."""
    classes, thresholds = len(points), np.array([point.threshold for point in points])
    false, missed = [], []
    for one in images:
        kept = (one.scores >= thresholds[one.labels]) & (one.matches != IGNORED)
        found = np.bincount(one.labels[kept & (one.matches >= 0)], minlength=classes)
        there = np.bincount(one.truth_labels[~one.crowd], minlength=classes)
        false.append(np.bincount(one.labels[kept & (one.matches < 0)], minlength=classes))
        missed.append(there - found)
    return np.array(false).reshape(-1, classes), np.array(missed).reshape(-1, classes)


def write_thresholds(analyses: Mapping[str, Analysis], out: str | os.PathLike[str]) -> None:
    """Write precision, recall and F1 of every class at every threshold as CSV.

    Columns: ``iou_type``, ``category``, ``threshold``, ``precision``, ``recall``, ``f1``, ``true``, ``false``,
    ``missed``. The three shares are in 0..1, and empty if there is nothing to count.

    Args:
        analyses: for each IoU type.
        out: written atomically.
    """
    with atomic_path(out) as path, path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["iou_type", "category", "threshold", "precision", "recall", "f1", "true", "false", "missed"])
        for kind, one in analyses.items():
            for name, curve in zip(one.names, one.curves, strict=True):
                for point in curve.points():
                    shares = [
                        f"{value:.6f}" if value >= 0 else "" for value in (point.precision, point.recall, point.f1)
                    ]
                    numbers = [point.true, point.false, point.missed]
                    writer.writerow([kind, name, f"{point.threshold:.2f}", *shares, *numbers])
