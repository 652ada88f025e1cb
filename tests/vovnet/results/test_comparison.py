"""How far two lists of detections are apart, by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from vovnet.results.comparison import Agreement, agreement, joined
from vovnet.results.rle import encode_part


def detections(*rows: tuple[float, int, float]) -> dict[str, Any]:
    """Return detections for rows of left edge, label and score; boxes are 10 × 10."""
    boxes = np.array([[x, 0.0, x + 10, 10.0] for x, _, _ in rows], np.float32).reshape(-1, 4)
    labels = np.array([label for _, label, _ in rows], dtype=np.int64)
    return {"boxes": boxes, "labels": labels, "scores": np.array([score for *_, score in rows], np.float32)}


EAGER = detections((0, 1, 0.9), (100, 2, 0.8), (200, 1, 0.7))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (EAGER, (3, 3, 0, 0.0, 0.0)),
        (detections((200.25, 1, 0.7), (0, 1, 0.875), (100, 2, 0.8)), (3, 3, 0, 0.25, 0.025)),
        (detections((0, 1, 0.9), (100, 1, 0.8), (200, 1, 0.7)), (3, 3, 2, 0.0, 0.0)),  # another class
        (detections((0, 1, 0.9), (100, 2, 0.8), (300, 1, 0.7)), (3, 3, 2, 0.0, 0.0)),  # another place
        (detections((0, 1, 0.9)), (1, 3, 2, 0.0, 0.0)),
        (detections(), (0, 3, 3, 0.0, 0.0)),
    ],
)
def test_agreement_of_detections_by_hand(answer: dict[str, Any], expected: tuple[Any, ...]) -> None:
    found = agreement(answer, EAGER)
    assert (found.count, found.eager_count, found.unmatched) == expected[:3]
    assert (found.box_distance, found.score_distance) == pytest.approx(expected[3:], abs=1e-6)
    assert found.mask_iou is None


def test_detections_below_the_threshold_count_only_if_their_counterpart_is_above() -> None:
    ours = detections((0, 1, 0.9), (100.5, 2, 0.52), (300, 1, 0.2))
    theirs = detections((0, 1, 0.9), (100, 2, 0.48), (400, 1, 0.3))
    found = agreement(ours, theirs, above=0.5)
    assert (found.count, found.eager_count, found.unmatched) == (2, 1, 0)
    assert (found.box_distance, found.score_distance) == pytest.approx((0.5, 0.04), abs=1e-6)
    assert agreement(ours, theirs).unmatched == 2


def test_the_masks_of_matched_detections_are_compared() -> None:
    def with_masks(rows: int) -> dict[str, Any]:
        masks = [np.ones((4, 4), np.bool_), np.ones((rows, 2), np.bool_), np.zeros((3, 3), np.bool_)]
        counts = [encode_part(mask, (1, 1), (6, 8)) for mask in masks]
        return {**EAGER, "segmentations": [{"size": [6, 8], "counts": text} for text in counts]}

    assert agreement(with_masks(4), with_masks(4)).mask_iou == 1.0  # two empty masks are equal
    assert agreement(with_masks(3), with_masks(4)).mask_iou == pytest.approx(0.75)


def test_a_pixel_may_differ() -> None:
    corner = np.ones((4, 4), np.bool_)
    corner[0, 0] = False
    one, other = (
        {**EAGER, "segmentations": [{"size": [6, 8], "counts": encode_part(mask, (1, 1), (6, 8))}] * 3}
        for mask in (corner, np.ones((4, 4), np.bool_))
    )
    assert agreement(one, other).mask_iou == 1.0


def test_keypoints_of_matched_detections_are_compared() -> None:
    points = np.arange(3 * 4 * 3, dtype=np.float32).reshape(3, 4, 3)
    moved = points.copy()
    moved[0, 1, 0] += 0.75
    moved[1, 2, 1] += 1.25
    moved[2, :, 0] -= 3
    moved[..., 2] += 9  # scores are not compared
    eager = {**EAGER, "keypoints": points}
    found = agreement({**EAGER, "keypoints": moved}, eager)
    assert (found.keypoints, found.far_keypoints) == (12, 5)
    found = agreement({**EAGER, "keypoints": moved}, eager, above=0.75)  # without the third detection
    assert (found.keypoints, found.far_keypoints) == (8, 1)
    order = [2, 0, 1]
    turned = {key: value[order] for key, value in eager.items()}
    assert agreement(turned, eager).far_keypoints == 0
    assert agreement(EAGER, eager).keypoints == 0


def test_images_are_joined_by_their_sums_and_extremes() -> None:
    found = joined([Agreement(1, 2, 1, 0.5, 0.1, None, 5, 1), Agreement(3, 3, 0, 0.25, 0.2, 0.9, 15, 2)])
    assert found == Agreement(4, 5, 1, 0.5, 0.2, 0.9, 20, 3)
    assert joined([]) == Agreement(0, 0, 0, 0.0, 0.0)
