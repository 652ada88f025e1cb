"""Precision, recall and F1 of each class over score thresholds, and the threshold with the best F1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vovnet.detection.analysis.matching import IGNORED, MatchedImage
from vovnet.results.thresholds import USUAL

THRESHOLDS: NDArray[np.float64] = np.arange(101) / 100
"""0, 0.01, … 1: a detection counts if its score is at least the threshold."""


@dataclass(frozen=True)
class OperatingPoint:
    """How many detections are true and false, and how many objects are missed, at a score threshold."""

    threshold: float
    true: int
    """Detections of an object."""
    false: int
    """Detections of nothing, of the wrong class, or of an object that a better one has found."""
    missed: int
    """Objects without a detection."""

    @property
    def precision(self) -> float:
        """The share of detections that are true, or -1 if there are none."""
        return _share(self.true, self.true + self.false)

    @property
    def recall(self) -> float:
        """The share of objects that were found, or -1 if there are none."""
        return _share(self.true, self.true + self.missed)

    @property
    def f1(self) -> float:
        """The harmonic mean of precision and recall, or -1 if there are neither objects nor detections."""
        return _share(2 * self.true, 2 * self.true + self.false + self.missed)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else -1.0


@dataclass(frozen=True)
class ThresholdCurve:
    """Numbers of one class, or of all together, at each of :data:`THRESHOLDS`."""

    true: NDArray[np.int64]
    """(101,): see :class:`OperatingPoint`."""
    false: NDArray[np.int64]
    """(101,)"""
    objects: int

    def points(self) -> list[OperatingPoint]:
        """Return a point for each threshold."""
        rows = zip(THRESHOLDS.tolist(), self.true.tolist(), self.false.tolist(), strict=True)
        return [OperatingPoint(threshold, true, false, self.objects - true) for threshold, true, false in rows]

    def best(self) -> OperatingPoint | None:
        """Return the point of the largest F1, or None if no detection is true.

        Where several neighbouring thresholds have it, the one in their middle is taken.
        """
        f1 = self._f1()
        first = int(f1.argmax())
        if f1[first] <= 0:
            return None
        run = first
        while run + 1 < len(f1) and f1[run + 1] == f1[first]:
            run += 1
        return self.points()[(first + run) // 2]

    def unbiased(self) -> OperatingPoint | None:
        """Return the point with as many detections as objects, or None if no detection is true.

        Where no threshold does it exactly, or several do, the one of the largest F1 is taken among the nearest; of
        equal ones, the one in their middle.
        """
        if not self.true.any():
            return None
        bias = np.abs(self.true + self.false - self.objects)
        nearest = np.flatnonzero(bias == bias.min())
        f1 = self._f1()[nearest]
        chosen = nearest[f1 == f1.max()]
        return self.points()[chosen[len(chosen) // 2]]

    def _f1(self) -> NDArray[np.float64]:
        whole = self.true + self.false + self.objects
        return np.asarray(2 * self.true / np.maximum(whole, 1))

    def at(self, threshold: float) -> OperatingPoint:
        """Return the point of one of :data:`THRESHOLDS`."""
        return self.points()[round(100 * threshold)]


def threshold_curves(images: Sequence[MatchedImage], classes: int) -> list[ThresholdCurve]:
    """Return the curve of each of ``classes`` classes."""
    if not images:
        return [ThresholdCurve(np.zeros(101, np.int64), np.zeros(101, np.int64), 0)] * classes
    labels = np.concatenate([one.labels for one in images])
    scores = np.concatenate([one.scores for one in images])
    matches = np.concatenate([one.matches for one in images])
    objects = np.concatenate([one.truth_labels[~one.crowd] for one in images])
    curves = []
    for number in range(classes):
        own = (labels == number) & (matches != IGNORED)
        true, false = own & (matches >= 0), own & (matches < 0)
        curves.append(ThresholdCurve(_above(scores[true]), _above(scores[false]), int((objects == number).sum())))
    return curves


def pooled(curves: Sequence[ThresholdCurve]) -> ThresholdCurve:
    """Return the curve of all classes together, every object counted alike."""
    true, false = (np.sum([getattr(one, name) for one in curves], axis=0) for name in ("true", "false"))
    return ThresholdCurve(true, false, sum(one.objects for one in curves))


def counting_points(curves: Sequence[ThresholdCurve]) -> list[OperatingPoint]:
    """Return for each class the point with as many detections as objects.

    A class of which nothing was found takes the threshold of all together, as in :func:`chosen_points`.
    """
    overall = pooled(curves).unbiased()
    threshold = overall.threshold if overall else USUAL
    return [one.unbiased() or one.at(threshold) for one in curves]


def chosen_points(curves: Sequence[ThresholdCurve]) -> tuple[list[OperatingPoint], OperatingPoint]:
    """Return the best point of each class, and of all together.

    A class of which nothing was found takes the threshold of all together; without any true detection that is
    :data:`~vovnet.results.thresholds.USUAL`.
    """
    together = pooled(curves)
    overall = together.best() or together.at(USUAL)
    return [one.best() or one.at(overall.threshold) for one in curves], overall


def _above(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the number of scores that are at least each threshold."""
    return len(scores) - np.searchsorted(np.sort(scores), THRESHOLDS, side="left")
