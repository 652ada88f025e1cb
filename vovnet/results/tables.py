"""The detections of many images as tables: ``counts.csv`` and ``detections.csv``."""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from vovnet.files import atomic_path
from vovnet.results.detections import ImageDetections
from vovnet.results.thresholds import Thresholds

COUNTS, DETECTIONS = "counts.csv", "detections.csv"


@dataclass(frozen=True)
class DetectedImage:
    """An image file whose detections have been written."""

    source: Path
    """The image."""
    name: str
    """The name of its results, without a suffix."""
    found: ImageDetections
    """May lack masks and keypoints; these are in the JSON file."""


def write_tables(
    folder: Path,
    images: Sequence[DetectedImage],
    categories: Sequence[Mapping[str, Any]] | None,
    thresholds: Thresholds,
) -> None:
    """Write ``counts.csv`` and ``detections.csv``.

    ``counts.csv`` has the columns ``image``, ``category`` and ``count``: a row for each image and category, also with
    0, of the detections whose score is at least the threshold. ``detections.csv`` has all detections, best first:
    ``image``, ``category_id``, ``category``, ``score`` (0..1), ``x``, ``y``, ``width``, ``height`` (pixels).

    Args:
        folder: where they go.
        images: in the order of the rows.
        categories: ``id`` and ``name`` of each; None takes the ids that were found.
        thresholds: lowest scores that are counted.
    """
    for name, rows in _tables(images, categories, thresholds):
        # A file name may have bytes that are no text.
        with (
            atomic_path(folder / name) as part,
            part.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file,
        ):
            csv.writer(file, lineterminator="\n").writerows(rows)


def csv_tables(
    images: Sequence[DetectedImage], categories: Sequence[Mapping[str, Any]] | None, thresholds: Thresholds
) -> dict[str, str]:
    """Return the texts of the files that :func:`write_tables` writes, by their names."""
    texts = {}
    for name, rows in _tables(images, categories, thresholds):
        file = io.StringIO(newline="")
        csv.writer(file, lineterminator="\n").writerows(rows)
        texts[name] = file.getvalue()
    return texts


def _tables(
    images: Sequence[DetectedImage], categories: Sequence[Mapping[str, Any]] | None, thresholds: Thresholds
) -> Iterator[tuple[str, Iterable[tuple[object, ...]]]]:
    """Yield the name and the rows of each table, the columns' names first."""
    if categories is None:
        known = sorted({int(number) for one in images for number in one.found.category_ids})
        categories = [{"id": number, "name": str(number)} for number in known]
    yield COUNTS, chain([("image", "category", "count")], _counts(images, categories, thresholds))
    columns = ("image", "category_id", "category", "score", "x", "y", "width", "height")
    yield DETECTIONS, chain([columns], _detections(images, categories))


def _counts(
    images: Sequence[DetectedImage], categories: Sequence[Mapping[str, Any]], thresholds: Thresholds
) -> Iterator[tuple[object, ...]]:
    least = {int(one["id"]): thresholds.of_category(str(one["name"])) for one in categories}
    for one in images:
        # Python's numbers, which is what the JSON file has and what is drawn.
        scores = zip(one.found.category_ids.tolist(), one.found.scores.tolist(), strict=True)
        counts = Counter(number for number, score in scores if score >= least[number])
        for category in categories:
            yield str(one.source), str(category["name"]), counts[int(category["id"])]


def _detections(
    images: Sequence[DetectedImage], categories: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[object, ...]]:
    for one in images:
        for entry in one.found.named(categories):
            yield str(one.source), entry["category_id"], entry["category"], entry["score"], *entry["bbox"]
