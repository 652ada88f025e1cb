"""How far two detectors' detections of one image are apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vovnet.results.rle import decode

SAME_BOX = 5.0
"""Largest difference in pixels of a coordinate of two detections that are matched."""
SAME_POINT = 1.0
"""Largest difference in pixels of a coordinate of a keypoint that counts as the same: heatmaps have a pixel's steps."""


@dataclass(frozen=True)
class Agreement:
    """How far a detector's detections are from the eager detector's.

    Attributes:
        count: number of detections.
        eager_count: number of the eager detector's detections.
        unmatched: number of detections of both without a counterpart of the same class.
        box_distance: largest difference of a coordinate between matched detections, in pixels.
        score_distance: largest difference of scores between matched detections.
        mask_iou: least IoU of the masks of matched detections, 1 if they differ in one pixel, whose probability may
            be one half; None if there are no masks.
        keypoints: number of keypoints of matched detections, in each list.
        far_keypoints: number of those that are further than :data:`SAME_POINT` from their counterpart. A heatmap may
            have two places of nearly the same height, so that a last bit decides between them.
    """

    count: int
    eager_count: int
    unmatched: int
    box_distance: float
    score_distance: float
    mask_iou: float | None = None
    keypoints: int = 0
    far_keypoints: int = 0


def agreement(found: Mapping[str, Any], eager: Mapping[str, Any], *, above: float = 0.0) -> Agreement:
    """Compare an image's detections with the eager detector's.

    Each of the eager detector's detections is matched with the nearest free one of its class within :data:`SAME_BOX`.

    Args:
        found: ``boxes`` (D, 4) with corners in pixels, ``labels`` (D,), ``scores`` (D,), as arrays or tensors of the
            CPU; optional ``segmentations``, for each the mask as COCO's compressed run lengths, and ``keypoints``
            (D, P, 3) with x and y in pixels.
        eager: the same of the eager detector.
        above: a detection counts if its score is higher, or the score of its counterpart is.
    """
    ours, theirs = _arrays(found), _arrays(eager)
    pairs = _matches(ours, theirs)
    high, eager_high = ours["scores"] > above, theirs["scores"] > above
    counted = [(one, other) for one, other in pairs if high[one] or eager_high[other]]
    single = np.setdiff1d(np.flatnonzero(high), [one for one, _ in pairs])
    eager_single = np.setdiff1d(np.flatnonzero(eager_high), [other for _, other in pairs])
    rows, others = np.array(counted, dtype=np.int64).reshape(-1, 2).T
    masks = [
        _iou(found["segmentations"][one], eager["segmentations"][other])
        for one, other in counted
        if "segmentations" in found and "segmentations" in eager
    ]
    return Agreement(
        int(high.sum()),
        int(eager_high.sum()),
        len(single) + len(eager_single),
        _largest(ours["boxes"][rows] - theirs["boxes"][others]),
        _largest(ours["scores"][rows] - theirs["scores"][others]),
        min(masks, default=None),
        *_far_keypoints(found.get("keypoints"), eager.get("keypoints"), rows, others),
    )


def joined(parts: Sequence[Agreement]) -> Agreement:
    """Return the agreement over several images."""
    masks = [part.mask_iou for part in parts if part.mask_iou is not None]
    return Agreement(
        sum(part.count for part in parts),
        sum(part.eager_count for part in parts),
        sum(part.unmatched for part in parts),
        max((part.box_distance for part in parts), default=0.0),
        max((part.score_distance for part in parts), default=0.0),
        min(masks, default=None),
        sum(part.keypoints for part in parts),
        sum(part.far_keypoints for part in parts),
    )


def _far_keypoints(found: Any, eager: Any, rows: NDArray[np.int64], others: NDArray[np.int64]) -> tuple[int, int]:
    """Return the number of keypoints of matched detections, and of those that differ."""
    if found is None or eager is None:
        return 0, 0
    differences = np.abs(np.asarray(found)[rows, :, :2] - np.asarray(eager)[others, :, :2])
    distances = differences.max(axis=2, initial=0.0)
    return distances.size, int((distances > SAME_POINT).sum())


def _arrays(detections: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    return {name: np.asarray(detections[name]) for name in ("boxes", "labels", "scores")}


def _matches(ours: Mapping[str, NDArray[Any]], theirs: Mapping[str, NDArray[Any]]) -> list[tuple[int, int]]:
    """Return the indices of matched detections."""
    free = np.ones(len(ours["labels"]), dtype=np.bool_)
    pairs = []
    for other, (box, label) in enumerate(zip(theirs["boxes"], theirs["labels"], strict=True)):
        distances = np.abs(ours["boxes"] - box).max(1, initial=0.0)
        distances[~free | (ours["labels"] != label)] = np.inf
        if not len(distances) or distances.min() > SAME_BOX:
            continue  # another detection passed the threshold or NMS
        nearest = int(distances.argmin())
        free[nearest] = False
        pairs.append((nearest, other))
    return pairs


def _largest(differences: NDArray[Any]) -> float:
    return float(np.abs(differences).max(initial=0.0))


def _iou(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Return the IoU of two masks, 1 if they differ in a pixel at most."""
    first, second = decode(one), decode(other)
    if int((first != second).sum()) <= 1:
        return 1.0
    return int((first & second).sum()) / int((first | second).sum())
