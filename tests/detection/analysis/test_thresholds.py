"""Precision, recall and F1 over thresholds against COCO's own matches, and cases worked out by hand."""

import numpy as np
import pytest
from detection_cases import CLASSES, coco_counts, errors_of_all_kinds, evaluated_case
from hypothesis import given
from hypothesis import strategies as st

from vovnet.detection.analysis.matching import matched_images
from vovnet.detection.analysis.thresholds import (
    THRESHOLDS,
    ThresholdCurve,
    chosen_points,
    counting_points,
    pooled,
    threshold_curves,
)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ties", [False, True])
def test_equals_the_matches_of_pycocotools(seed, ties):
    evaluated = evaluated_case(*errors_of_all_kinds(seed, ties=ties))
    curves = threshold_curves(list(matched_images(evaluated)), CLASSES)
    for position, curve in enumerate(curves):
        for point in curve.points()[::7]:
            expected = coco_counts(evaluated, position, point.threshold)
            assert (point.true, point.false, point.true + point.missed) == expected


def test_a_threshold_includes_scores_that_equal_it():
    truth, _ = errors_of_all_kinds(0)
    one = truth["annotations"][0] | {"iscrowd": 0}
    truth["annotations"] = [one]
    result = {"image_id": one["image_id"], "category_id": one["category_id"], "bbox": one["bbox"], "score": 0.29}
    curve = pooled(threshold_curves(list(matched_images(evaluated_case(truth, [result]))), CLASSES))
    assert curve.true.tolist() == [1] * 30 + [0] * 71


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=101, max_size=101), st.integers(0, 30))
def test_no_threshold_has_a_larger_f1_than_the_best(rows, more):
    true, false = np.array(rows).T
    true = np.sort(true)[::-1]
    curve = ThresholdCurve(true, np.sort(false)[::-1], int(true[0]) + more)
    best = curve.best()
    assert (best is None) == (true[0] == 0)
    if best is not None:
        assert best.f1 == max(point.f1 for point in curve.points())
        assert best.f1 == pytest.approx(2 / (1 / best.precision + 1 / best.recall))


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=101, max_size=101), st.integers(0, 30))
def test_no_threshold_counts_more_rightly_than_the_one_for_counts(rows, more):
    true, false = np.array(rows).T
    true = np.sort(true)[::-1]
    curve = ThresholdCurve(true, np.sort(false)[::-1], int(true[0]) + more)
    point = curve.unbiased()
    assert (point is None) == (true[0] == 0)
    if point is not None:
        wrong = {one.threshold: abs(one.false - one.missed) for one in curve.points()}
        assert wrong[point.threshold] == min(wrong.values())
        nearest = [one for one in curve.points() if wrong[one.threshold] == wrong[point.threshold]]
        assert point.f1 == max(one.f1 for one in nearest)


def test_a_class_that_was_not_found_is_counted_at_the_threshold_of_all():
    found = ThresholdCurve(np.where(THRESHOLDS <= 0.8, 5, 0), np.where(THRESHOLDS <= 0.6, 5, 0), 5)
    lost = ThresholdCurve(np.zeros(101, int), np.zeros(101, int), 3)
    points = counting_points([found, lost])
    assert 0.6 < points[0].threshold <= 0.8
    assert points[1].threshold == pooled([found, lost]).unbiased().threshold
    assert counting_points([lost])[0].threshold == 0.5


def test_the_middle_of_equal_thresholds_is_the_best():
    true = np.array([4] * 101)
    false = np.where(THRESHOLDS > 0.4, 0, 3)
    true[81:] = 2
    assert ThresholdCurve(true, false, 4).best().threshold == 0.6


def test_a_class_that_was_not_found_takes_the_threshold_of_all():
    found = ThresholdCurve(np.where(THRESHOLDS <= 0.8, 5, 0), np.where(THRESHOLDS <= 0.6, 5, 0), 5)
    lost = ThresholdCurve(np.zeros(101, int), np.where(THRESHOLDS <= 0.9, 2, 0), 3)
    points, overall = chosen_points([found, lost])
    assert points[1].threshold == overall.threshold > 0.6
    assert (points[1].precision, points[1].recall, points[1].f1) == (0, 0, 0)
    nothing, overall = chosen_points([lost])
    assert nothing[0].threshold == overall.threshold == 0.5
