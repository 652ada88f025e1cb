"""TIDE's kinds of errors against the authors' program."""

import numpy as np
import pytest
from detection_cases import CLASSES, errors_of_all_kinds, evaluated_case

from vovnet.detection.analysis.matching import matched_images
from vovnet.detection.analysis.tide import KINDS, error_kinds

NAMES = ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss")
"""tidecv's names of the kinds."""

RECORDED = {
    (0, 12, False): (
        [0.1289172825, 0.0092207799, 0.0691569205, 0.0004125413, 0.0051586251, 0.0343665459, 0.143144535],
        [3, 12, 5, 7, 29, 20],
    ),
    (1, 12, True): (
        [0.1367863036, 0.0163448845, 0.0797638038, 0.0, 0.0, 0.0374647753, 0.0950638741],
        [6, 12, 7, 4, 37, 13],
    ),
    (2, 40, False): (
        [0.1068256003, 0.0662547483, 0.0867966739, 0.007252008, 0.0024712221, 0.042532928, 0.0534170501],
        [21, 42, 20, 10, 91, 39],
    ),
}
"""tidecv 1.0.1 on ``errors_of_all_kinds``, by its arguments: AP50 and costs in 0..1, and how many there are."""


def numbers_of(case):
    found = error_kinds(list(matched_images(evaluated_case(*case))), CLASSES)
    return [found.ap50, *(found.costs[name] for name in KINDS)], [found.counts[name] for name in KINDS]


def numbers_of_tidecv(tidecv, truth, results):
    there, found = tidecv.Data("truth"), tidecv.Data("found")
    for image in truth["images"]:
        there.add_image(image["id"], "")
        found.add_image(image["id"], "")
    for one in truth["annotations"]:
        add = there.add_ignore_region if one["iscrowd"] else there.add_ground_truth
        add(one["image_id"], one["category_id"], box=one["bbox"])
    for one in results:
        found.add_detection(one["image_id"], one["category_id"], one["score"], box=one["bbox"])
    program = tidecv.TIDE()
    run = program.evaluate(there, found, mode=program.BOX, name="run")
    costs = program.get_main_errors()["run"]
    counts = {kind.short_name: number for kind, number in run.count_errors().items()}
    return [run.ap / 100, *(costs[name] / 100 for name in NAMES)], [counts[name] for name in NAMES]


@pytest.mark.parametrize("case", RECORDED)
def test_equals_the_recorded_numbers(case):
    costs, counts = numbers_of(errors_of_all_kinds(*case))
    assert costs == pytest.approx(RECORDED[case][0], abs=1e-9)
    assert counts == RECORDED[case][1]
    assert min(counts) > 0, "a kind is missing from the case"


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("ties", [False, True])
def test_equals_tidecv(seed, ties):
    tidecv = pytest.importorskip("tidecv", reason="needs tidecv 1.0.1 (pip install tidecv), which wants opencv-python")
    truth, results = errors_of_all_kinds(seed, ties=ties)
    costs, counts = numbers_of_tidecv(tidecv, truth, results)
    assert numbers_of((truth, results)) == (pytest.approx(costs, abs=1e-12), counts)


def test_without_errors_nothing_costs_anything():
    truth, _ = errors_of_all_kinds(0)
    perfect = [
        {"image_id": one["image_id"], "category_id": one["category_id"], "bbox": one["bbox"], "score": 0.9}
        for one in truth["annotations"]
        if not one["iscrowd"]
    ]
    costs, counts = numbers_of((truth, perfect))
    assert np.allclose(costs, [1, 0, 0, 0, 0, 0, 0])
    assert counts == [0] * 6


def test_only_the_best_detections_of_an_image_count():
    truth, results = errors_of_all_kinds(0, images=1)
    images = list(matched_images(evaluated_case(truth, results)))
    best = max(results, key=lambda one: one["score"])
    alone = list(matched_images(evaluated_case(truth, [best])))
    assert error_kinds(images, CLASSES, most=1) == error_kinds(alone, CLASSES)
