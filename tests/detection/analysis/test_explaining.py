"""All numbers of an analysis together."""

import csv

import numpy as np
import pytest
from detection_cases import errors_of_all_kinds, evaluated_case

from vovnet.detection.analysis.explaining import analyse, write_thresholds


@pytest.fixture(scope="module")
def analysis():
    return analyse(evaluated_case(*errors_of_all_kinds(7, images=20)))


def test_errors_of_images_add_up(analysis):
    assert sum(one.missed for one in analysis.images) == sum(point.missed for point in analysis.best)
    assert sum(one.false for one in analysis.images) == sum(point.false for point in analysis.best)
    totals = [one.total for one in analysis.images]
    assert totals == sorted(totals, reverse=True)


def test_the_count_is_off_by_what_is_false_and_missed(analysis):
    biases = [(point.false - point.missed) / 20 for point in analysis.counting]
    assert analysis.count_bias == pytest.approx(biases)
    assert (np.array(analysis.count_error) >= np.abs(analysis.count_bias) - 1e-12).all()


def test_counts_by_hand():
    truth, _ = errors_of_all_kinds(0, images=2)
    box, far = [10, 10, 40, 40], [200, 200, 30, 30]
    entry = {"category_id": 10, "bbox": box, "area": 1600, "iscrowd": 0}
    truth["annotations"] = [{**entry, "id": 1, "image_id": 3}, {**entry, "id": 2, "image_id": 6}]
    found = [(3, box, 0.9), (3, far, 0.9), (3, [100, 100, 9, 9], 0.9), (6, box, 0.2), (6, box, 0.1)]
    results = [{"image_id": i, "category_id": 10, "bbox": one, "score": score} for i, one, score in found]
    analysis = analyse(evaluated_case(truth, results))
    # At 0.15 there are 2 true and 2 false detections, F1 4/6; above 0.2 only 1 true, 2 false, 1 missed. Both leave too
    # many or too few; the counts are off by 2 and 0 at 0.15, and by 2 and -1 above.
    assert analysis.best[0].f1 == pytest.approx(4 / 6)
    assert 0.2 < analysis.counting[0].threshold <= 0.9
    assert (analysis.count_error[0], analysis.count_bias[0]) == (1.5, 0.5)
    assert analysis.class_numbers()[0]["count_threshold"] == analysis.counting[0].threshold
    assert [(one.image_id, one.missed, one.false) for one in analysis.images] == [(3, 0, 2), (6, 0, 0)]


def test_thresholds_file(analysis, tmp_path):
    write_thresholds({"bbox": analysis}, tmp_path / "thresholds.csv")
    with (tmp_path / "thresholds.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["category"] == "kind 1"]
    best = analysis.best[0]
    row = next(row for row in rows if float(row["threshold"]) == best.threshold)
    assert len(rows) == 101
    assert float(row["f1"]) == pytest.approx(best.f1, abs=1e-6)
    assert float(row["f1"]) == max(float(row["f1"]) for row in rows)
    assert [int(row[name]) for name in ("true", "false", "missed")] == [best.true, best.false, best.missed]
