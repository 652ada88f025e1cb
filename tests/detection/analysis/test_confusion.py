"""Confusions: cases worked out by hand, and what must hold for any."""

import csv

import numpy as np
import pytest
from detection_cases import CLASSES, errors_of_all_kinds, evaluated_case
from PIL import Image

from vovnet.detection.analysis.confusion import confusion_matrix, plot_confusion, write_confusion
from vovnet.detection.analysis.matching import IGNORED, matched_images
from vovnet.detection.analysis.thresholds import threshold_curves

A, B, C, D = 10, 20, 30, 40
BOX, ASIDE, FAR = [10, 10, 40, 40], [20, 10, 40, 40], [200, 200, 30, 30]


def matrix_of(objects, detections, threshold=0.0):
    """Objects are (category, box, crowd), detections (category, box, score)."""
    truth, _ = errors_of_all_kinds(0, images=1)
    truth["annotations"] = [
        {"id": number, "image_id": 3, "category_id": category, "bbox": box, "area": box[2] * box[3], "iscrowd": crowd}
        for number, (category, box, crowd) in enumerate(objects, start=1)
    ]
    results = [{"image_id": 3, "category_id": k, "bbox": box, "score": score} for k, box, score in detections]
    return confusion_matrix(matched_images(evaluated_case(truth, results)), CLASSES, threshold)


def cells(matrix):
    """Row, column and number of what is not 0; 4 is the background."""
    return [(int(row), int(column), int(matrix[row, column])) for row, column in np.argwhere(matrix)]


@pytest.mark.parametrize(
    ("objects", "detections", "expected"),
    [
        ([(A, BOX, 0)], [(A, BOX, 0.9)], [(0, 0, 1)]),
        ([(A, BOX, 0)], [(B, BOX, 0.9)], [(0, 1, 1)]),
        ([(A, BOX, 0)], [], [(0, 4, 1)]),
        ([], [(A, BOX, 0.9)], [(4, 0, 1)]),
        ([(A, BOX, 0)], [(A, FAR, 0.9)], [(0, 4, 1), (4, 0, 1)]),
        # The right class is taken even if a wrong one has the better score and place.
        ([(A, BOX, 0)], [(B, BOX, 0.9), (A, ASIDE, 0.3)], [(0, 0, 1), (4, 1, 1)]),
        # A second detection of an object is one of the background.
        ([(A, BOX, 0)], [(A, BOX, 0.9), (A, BOX, 0.8)], [(0, 0, 1), (4, 0, 1)]),
        # Of two wrong ones, the nearer is the confusion.
        ([(A, BOX, 0)], [(B, ASIDE, 0.9), (C, BOX, 0.3)], [(0, 2, 1), (4, 1, 1)]),
        ([(A, BOX, 1)], [(A, BOX, 0.9)], []),
        ([(A, BOX, 1)], [(B, BOX, 0.9)], [(4, 1, 1)]),
    ],
)
def test_by_hand(objects, detections, expected):
    assert cells(matrix_of(objects, detections)) == expected


def test_detections_below_the_threshold_do_not_count():
    assert cells(matrix_of([(A, BOX, 0)], [(A, BOX, 0.5), (B, FAR, 0.49)], 0.5)) == [(0, 0, 1)]


@pytest.mark.parametrize("threshold", [0.0, 0.33, 0.8])
def test_sums(threshold):
    images = list(matched_images(evaluated_case(*errors_of_all_kinds(5))))
    matrix = confusion_matrix(images, CLASSES, threshold)
    labels = np.concatenate([one.labels[(one.scores >= threshold) & (one.matches != IGNORED)] for one in images])
    points = [curve.at(threshold) for curve in threshold_curves(images, CLASSES)]
    assert matrix.diagonal()[:-1].tolist() == [point.true for point in points]
    assert matrix[:-1].sum(axis=1).tolist() == [point.true + point.missed for point in points]
    assert matrix[:, :-1].sum(axis=0).tolist() == np.bincount(labels, minlength=CLASSES).tolist()


def test_files(tmp_path):
    counts = np.arange(9).reshape(3, 3)
    write_confusion(counts, ["a, b", 'c "d"\n'], tmp_path / "confusion.csv")
    with (tmp_path / "confusion.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [
        ["truth", "a, b", 'c "d"\n', "background"],
        ["a, b", "0", "1", "2"],
        ['c "d"\n', "3", "4", "5"],
        ["background", "6", "7", "8"],
    ]
    plot_confusion(counts, ["$a$", "中"], 0.5, tmp_path / "few.png")
    plot_confusion(np.ones((81, 81), int), [f"class {number}" for number in range(80)], 0.5, tmp_path / "many.png")
    assert Image.open(tmp_path / "many.png").width > Image.open(tmp_path / "few.png").width
