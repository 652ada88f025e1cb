"""The six kinds of errors of TIDE, and what each costs (Bolya et al. 2020, arXiv:2008.08115)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vovnet.detection.analysis.matching import MATCH_IOU, MatchedImage

KINDS = ("class", "location", "both", "duplicate", "background", "missed")
"""``class``: the right place, the wrong class. ``location``: the right class, IoU from 0.1 to 0.5. ``both``: the wrong
class and IoU from 0.1 to 0.5. ``duplicate``: a better detection has found the object. ``background``: IoU below 0.1
with any object. ``missed``: an object without a detection, not even one of a ``class`` or ``location`` error."""

_CLASS, _LOCATION, _BOTH, _DUPLICATE, _BACKGROUND, _MISSED = range(len(KINDS))
_NO_ERROR = -1
_TOUCHES = 0.1  # TIDE's IoU below which a detection is of the background


@dataclass(frozen=True)
class ErrorKinds:
    """Errors by kind."""

    ap50: float
    """TIDE's AP at IoU 0.50, in 0..1. A class without objects counts in its mean if there are detections of it."""
    counts: dict[str, int]
    """The number of errors of each of :data:`KINDS`."""
    costs: dict[str, float]
    """How much AP50, in 0..1, would rise without the errors of each kind (TIDE's dAP)."""


@dataclass
class _Rows:
    """Detections, one after the other, in the order of images and scores."""

    labels: NDArray[np.int64]
    scores: NDArray[np.float64]
    true: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    kinds: NDArray[np.int64]
    """The kind of each error, or -1."""
    repaired: NDArray[np.int64]
    """The class of which a mended ``class`` or ``location`` error would be a true detection, or -1."""


def error_kinds(images: Iterable[MatchedImage], classes: int, most: int = 100) -> ErrorKinds:
    """Tell the kinds of all errors, and compute what each costs.

    The numbers are those of the authors' program (tidecv 1.0.1), which matches a little differently from COCO: all
    detections of an image, of any class, compete for ``most``, and of objects with equal IoU the first is taken.

    Args:
        images: from :func:`~.matching.matched_images`.
        classes: number of classes.
        most: largest number of detections in an image.
    """
    objects, missed = np.zeros(classes, dtype=np.int64), np.zeros(classes, dtype=np.int64)
    parts = []
    for image in images:
        rows, lost = _of_image(image, most)
        parts.append(rows)
        np.add.at(objects, image.truth_labels[~image.crowd], 1)
        np.add.at(missed, lost, 1)
    names = _Rows.__dataclass_fields__
    rows = _Rows(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})
    counted = ~rows.ignored
    before = _mean_ap(rows.labels[counted], rows.scores[counted], rows.true[counted], objects)
    counts, costs = {}, {}
    for number, name in enumerate(KINDS):
        after = _mean_ap(*_without(rows, number), objects - missed if number == _MISSED else objects)
        counts[name] = int(missed.sum() if number == _MISSED else (rows.kinds == number).sum())
        costs[name] = max(after - before, 0.0)
    return ErrorKinds(before, counts, costs)


def _of_image(image: MatchedImage, most: int) -> tuple[_Rows, NDArray[np.int64]]:
    """Return the detections of an image with the kinds of their errors, and the classes of missed objects."""
    labels, scores, ious = image.labels[:most], image.scores[:most], image.ious[:most, ~image.crowd]
    truth = image.truth_labels[~image.crowd]
    same = labels[:, None] == truth[None]
    matches, used = _matches(ious * same)
    in_crowd = (image.ious[:most, image.crowd] > MATCH_IOU) & (labels[:, None] == image.truth_labels[image.crowd][None])
    count = len(labels)
    kinds, repaired = np.full(count, _NO_ERROR, dtype=np.int64), np.full(count, -1, dtype=np.int64)
    usable = np.zeros(len(truth), dtype=np.bool_)
    for row in np.flatnonzero(matches < 0):
        kinds[row], target = _kind(ious[row], same[row], used)
        if target is not None and not used[target] and not usable[target]:
            usable[target] = True  # the best detection of an object is mended; the others would be duplicates then
            repaired[row] = truth[target]
    true = matches >= 0
    rows = _Rows(labels, scores, true, ~true & in_crowd.any(axis=1), kinds, repaired)
    return rows, truth[~used & ~usable]


def _matches(ious: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Return the object that each detection finds, or -1, and which objects are found."""
    matches, used = np.full(len(ious), -1, dtype=np.int64), np.zeros(ious.shape[1], dtype=np.bool_)
    for row in np.flatnonzero((ious >= MATCH_IOU).any(axis=1)):
        free = np.where(used, 0.0, ious[row])
        column = int(free.argmax())
        if free[column] >= MATCH_IOU:
            matches[row], used[column] = column, True
    return matches, used


def _kind(ious: NDArray[np.float64], same: NDArray[np.bool_], used: NDArray[np.bool_]) -> tuple[int, int | None]:
    """Return the kind of a false detection, and the object that it would find if it were mended."""
    if not ious.size:
        return _BACKGROUND, None
    own = ious * same
    nearest = int(own.argmax())
    if _TOUCHES <= own[nearest] <= MATCH_IOU:
        return _LOCATION, nearest
    other = ious * ~same
    nearest = int(other.argmax())
    if other[nearest] >= MATCH_IOU:
        return _CLASS, nearest
    if (own * used).max() >= MATCH_IOU:
        return _DUPLICATE, None
    return (_BACKGROUND if ious.max() <= _TOUCHES else _BOTH), None


def _without(rows: _Rows, kind: int) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.bool_]]:
    """Return class, score and truth of the detections after errors of a kind are mended or taken away.

    Among equal scores, false detections come first, as in the authors' program.
    """
    errors = np.flatnonzero(rows.kinds != _NO_ERROR)
    of_kind = rows.kinds[errors] == kind
    mended = of_kind & (rows.repaired[errors] >= 0)
    kept = mended | (~of_kind & ~rows.ignored[errors])
    errors, mended = errors[kept], mended[kept]
    labels = np.where(mended, rows.repaired[errors], rows.labels[errors])
    right = np.flatnonzero(rows.true)
    order = np.concatenate((errors, right))
    return (
        np.concatenate((labels, rows.labels[right])),
        rows.scores[order],
        np.concatenate((mended, np.ones(len(right), dtype=np.bool_))),
    )


def _mean_ap(
    labels: NDArray[np.int64], scores: NDArray[np.float64], true: NDArray[np.bool_], objects: NDArray[np.int64]
) -> float:
    """Return the mean AP of all classes that have objects or detections, in 0..1."""
    values = []
    for number, count in enumerate(objects.tolist()):
        own = labels == number
        if count or own.any():
            values.append(_average_precision(scores[own], true[own], count))
    return float(np.mean(values)) if values else 0.0


def _average_precision(scores: NDArray[np.float64], true: NDArray[np.bool_], objects: int) -> float:
    """Return the mean of the precision at recalls 0, 0.01, … 1, each the best of any larger recall."""
    if not objects or not len(scores):
        return 0.0
    hits = np.cumsum(true[np.argsort(-scores, kind="stable")])
    precision = np.maximum.accumulate((hits / np.arange(1, len(hits) + 1))[::-1])[::-1]
    places = np.searchsorted(hits / objects, np.arange(101) / 100, side="left")
    return float(precision[places[places < len(precision)]].sum() / 101)
