"""Keypoints are analysed as boxes are, with pycocotools' OKS and its matches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from detection_cases import coco_counts
from evaluation_cases import POINTS, random_case

from vovnet.detection.analysis.explaining import analyse
from vovnet.detection.analysis.matching import matched_images
from vovnet.detection.analysis.thresholds import threshold_curves
from vovnet.detection.evaluation.backends import run_coco_eval
from vovnet.detection.evaluation.explanation import analyses_of, explained
from vovnet.detection.evaluation.tables import format_metrics
from vovnet.detection.evaluation.truth import coco_ground_truth

SIGMAS = [0.05, 0.1, 0.03, 0.2]


def evaluated_case(seed: int) -> Any:
    truth, results = random_case(seed, 8, "keypoints")
    complete = coco_ground_truth(truth, "keypoints", POINTS)
    return run_coco_eval(complete, [dict(one) for one in results], "keypoints", sorted(complete.imgs), SIGMAS)


@pytest.mark.parametrize("seed", range(6))
def test_similarities_and_matches_are_those_of_pycocotools(seed: int) -> None:
    evaluated = evaluated_case(seed)
    images = list(matched_images(evaluated))
    compared = 0
    for image in images:
        for position, category in enumerate(evaluated.params.catIds):
            expected = np.array(evaluated.ious[image.image_id, category])
            ours = image.ious[np.ix_(image.labels == position, image.truth_labels == position)]
            compared += expected.size
            assert ours.size == expected.size
            if expected.size:
                np.testing.assert_allclose(ours, expected, rtol=1e-12, atol=1e-15)
    assert compared > 20
    curves = threshold_curves(images, len(evaluated.params.catIds))
    for position, curve in enumerate(curves):
        for point in curve.points()[::9]:
            expected_counts = coco_counts(evaluated, position, point.threshold)
            assert (point.true, point.false, point.true + point.missed) == expected_counts


def test_an_object_without_labelled_points_is_taken_once_and_does_not_count() -> None:
    nothing = {"keypoints": [0.0] * 3 * POINTS, "bbox": [10.0, 10.0, 30.0, 30.0]}
    truth = {
        "images": [{"id": 1, "width": 100, "height": 100}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 3, "iscrowd": 0, **nothing}],
        "categories": [{"id": 3, "name": "a"}],
    }
    inside = [20.0, 20.0, 1.0] * POINTS
    results = [{"image_id": 1, "category_id": 3, "keypoints": inside, "score": score} for score in (0.9, 0.8)]
    complete = coco_ground_truth(truth, "keypoints", POINTS)
    evaluated = run_coco_eval(complete, results, "keypoints", [1], SIGMAS)
    (curve,) = threshold_curves(list(matched_images(evaluated)), 1)
    point = curve.at(0.0)
    assert (point.true, point.false, point.missed) == (0, 1, 0) == coco_counts(evaluated, 0, 0.0)


def test_the_table_and_the_metrics_have_them() -> None:
    evaluated = evaluated_case(1)
    analysis = analyse(evaluated)
    assert analysis.errors is None
    names = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
    metrics = {
        "keypoints": dict.fromkeys(names, 0.5),
        "per_class": {
            "keypoints": [{"id": 1, "name": name, "AP": 0.5, "AP50": 0.5, "objects": 1} for name in analysis.names]
        },
    }
    complete = explained(metrics, analyses_of({"keypoints": evaluated}))
    assert set(complete["best"]["keypoints"]) == {"threshold", "precision", "recall", "F1"}
    assert complete["errors"] == {}
    assert "best F1, points" in format_metrics(complete)
