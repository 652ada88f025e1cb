"""Which detection found which object: pycocotools' rule at IoU (of keypoints OKS) 0.5, once for every use."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vovnet.detection.analysis.oks import similarities

if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval

MATCH_IOU = 0.5
"""A detection finds an object of its class if their IoU, or of keypoints their OKS, is at least this."""

NOTHING, IGNORED = -1, -2
"""Values of :attr:`MatchedImage.matches` for a detection that found no object, and for one in a crowd region."""


@dataclass(frozen=True)
class MatchedImage:
    """The D detections of an image, best first, and its G objects."""

    image_id: int
    labels: NDArray[np.int64]
    """(D,): position of the category."""
    scores: NDArray[np.float64]
    """(D,): in 0..1, descending."""
    truth_labels: NDArray[np.int64]
    """(G,): position of the category."""
    crowd: NDArray[np.bool_]
    """(G,): regions whose objects are not told apart, and of keypoints also objects without a labelled point;
    detections in them count as neither true nor false."""
    ious: NDArray[np.float64]
    """(D, G), of keypoints OKS; with a crowd region, the part of the detection that lies in it."""
    matches: NDArray[np.int64]
    """(D,): the object that the detection found, or :data:`NOTHING`, or :data:`IGNORED`."""


def matched_images(evaluated: COCOeval) -> Iterator[MatchedImage]:
    """Yield the images of an evaluation of boxes, masks or keypoints.

    Args:
        evaluated: has the ground truth, the detections, and the ids of images and categories. All detections are
            taken, however many an image has.
    """
    points = evaluated.params.iouType == "keypoints"
    position = {category: number for number, category in enumerate(evaluated.params.catIds)}
    for image_id in evaluated.params.imgIds:
        truth: list[Any] = [one for one in evaluated.cocoGt.imgToAnns[image_id] if one["category_id"] in position]
        found: list[Any] = [one for one in evaluated.cocoDt.imgToAnns[image_id] if one["category_id"] in position]
        scores = np.array([one["score"] for one in found], dtype=np.float64)
        order = np.argsort(-scores, kind="stable")
        found = [found[index] for index in order]
        shared = np.array([bool(one["iscrowd"]) for one in truth], dtype=np.bool_)
        crowd = shared | np.array([points and one["num_keypoints"] == 0 for one in truth], dtype=np.bool_)
        ious = _ious(evaluated, found, truth)
        labels, truth_labels = _positions(found, position), _positions(truth, position)
        matches = _matches(labels, truth_labels, crowd, shared, ious)
        yield MatchedImage(image_id, labels, scores[order], truth_labels, crowd, ious, matches)


def _ious(evaluated: COCOeval, found: list[Any], truth: list[Any]) -> NDArray[np.float64]:
    """Return the IoU or OKS (D, G) of detections and objects."""
    from pycocotools import mask as coco_mask

    if not found or not truth:
        return np.zeros((len(found), len(truth)))
    if evaluated.params.iouType == "keypoints":
        return similarities(found, truth, evaluated.params.kpt_oks_sigmas.tolist())
    shape = "segmentation" if evaluated.params.iouType == "segm" else "bbox"
    crowds = [int(one["iscrowd"]) for one in truth]
    return np.asarray(coco_mask.iou([one[shape] for one in found], [one[shape] for one in truth], crowds))


def _positions(annotations: list[dict[str, Any]], position: dict[int, int]) -> NDArray[np.int64]:
    return np.array([position[one["category_id"]] for one in annotations], dtype=np.int64)


def _matches(
    labels: NDArray[np.int64],
    truth_labels: NDArray[np.int64],
    crowd: NDArray[np.bool_],
    shared: NDArray[np.bool_],
    ious: NDArray[np.float64],
) -> NDArray[np.int64]:
    """Return the object that each detection finds (pycocotools cocoeval.py, ``evaluateImg``).

    The best detection chooses first. What a detection finds does not depend on worse ones, so leaving out those below
    a threshold changes nothing for the others. Of what does not count, only a crowd region (``shared``) is found twice.
    """
    matches = np.full(len(labels), NOTHING, dtype=np.int64)
    if not ious.size:
        return matches
    same = (labels[:, None] == truth_labels[None]) & (ious >= MATCH_IOU)
    free, ignored = ~crowd, crowd.copy()
    for row in np.flatnonzero(same.any(axis=1)):
        columns = np.flatnonzero(same[row] & free)
        if columns.size:
            chosen = _best(ious[row], columns)
            matches[row] = chosen
            free[chosen] = False
        elif (columns := np.flatnonzero(same[row] & ignored)).size:
            matches[row] = IGNORED
            chosen = _best(ious[row], columns)
            ignored[chosen] = shared[chosen]
    return matches


def _best(ious: NDArray[np.float64], columns: NDArray[np.int64]) -> int:
    return int(columns[::-1][np.argmax(ious[columns][::-1])])  # of equal ones the last, as there
