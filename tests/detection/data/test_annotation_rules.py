"""Every kind of problem of an annotation is found and named; values that mean the usual are accepted."""

from collections.abc import Callable
from typing import Any

import pytest

from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.annotation_rules import box_problem
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.data.report import KINDS
from vovnet.detection.data.validation import check_data
from vovnet.errors import InputError

Write = Callable[..., DataSource]
NAN, INFINITE = float("nan"), float("inf")

# Kind, what makes a sound annotation bad, whether a box detector trains on it, whether a mask detector does.
BAD_ANNOTATIONS = [
    ("unknown_image", {"image_id": 99}, False, False),
    ("unknown_image", {"image_id": "1"}, False, False),
    ("unknown_image", {"image_id": [1]}, False, False),
    ("unknown_image", {"image_id": None}, False, False),
    ("unknown_category", {"category_id": 8}, False, False),
    ("unknown_category", {"category_id": {}}, False, False),
    ("bad_box", {"bbox": None}, False, False),
    ("bad_box", {"bbox": [1, 2, 3]}, False, False),
    ("bad_box", {"bbox": [1, 2, 3, "4"]}, False, False),
    ("bad_box", {"bbox": [1, 2, NAN, 4]}, False, False),
    ("bad_box", {"bbox": [1, 2, INFINITE, 4]}, False, False),
    ("bad_box", {"bbox": [1, 2, 10**400, 4]}, False, False),
    ("empty_box", {"bbox": [10, 10, 0, 5]}, False, False),
    ("empty_box", {"bbox": [10, 10, 5, -5]}, False, False),
    ("box_outside", {"bbox": [60, 10, 5, 5]}, False, False),
    ("box_outside", {"bbox": [10, -9, 5, 9]}, False, False),
    ("box_partly_outside", {"bbox": [50, 10, 20, 20]}, True, True),
    ("tiny_box", {"bbox": [10, 10, 20, 0.5]}, True, True),
    ("bad_box", {"bbox": [1, 2, True, 4]}, False, False),
    *(("bad_iscrowd", {"iscrowd": wrong}, False, False) for wrong in ("", "no", "2", 2, 0.5, [], {}, [0], NAN)),
    *(("bad_area", {"area": wrong}, True, True) for wrong in ("400", 0, -1, True, [], NAN, INFINITE, 10**400)),
    *(("ignore_set", {"ignore": wrong}, True, True) for wrong in (1, True, "1", "no", [])),
    ("unknown_category", {"category_id": "7"}, False, False),
    ("unknown_category", {"category_id": True}, False, False),
    ("unknown_category", {"category_id": 2**63}, False, False),
    ("unknown_image", {"image_id": True}, False, False),
    ("unknown_image", {"image_id": 1.5}, False, False),
    *(("bad_polygon", {"segmentation": wrong}, True, False) for wrong in ("", "text", 0, False, 5, [1, 2, 3, 4, 5, 6])),
    ("bad_polygon", {"segmentation": [[True, 1, 5, 1, 5, 5]]}, True, False),
    ("bad_rle", {"segmentation": {"size": [40, 60], "counts": [True, 2399]}}, True, False),
    ("bad_rle", {"segmentation": {"size": [40, 60], "counts": ["1200", 1200]}}, True, False),
    ("no_mask", {"segmentation": None}, True, False),
    ("no_mask", {"segmentation": []}, True, False),
    ("bad_polygon", {"segmentation": [[1, 1, 5, 5]]}, True, False),
    ("bad_polygon", {"segmentation": [[1, 1, 5, 5], [1, 1, 9, 1, 9, 9]]}, True, True),
    ("bad_rle", {"segmentation": {"size": [40, 60], "counts": "zz"}}, True, False),
    ("rle_size", {"segmentation": {"size": [60, 40], "counts": [1200, 1200]}}, True, False),
    ("rle_sum", {"segmentation": {"size": [40, 60], "counts": [1200, 1201]}}, True, False),
    ("empty_mask", {"segmentation": {"size": [40, 60], "counts": [2400]}}, True, False),
    ("empty_mask", {"segmentation": [[70, 50, 80, 50, 80, 60]]}, True, False),
]


@pytest.mark.parametrize(("kind", "fields", "boxes_keep", "masks_keep"), BAD_ANNOTATIONS)
def test_bad_annotations(
    write: Write, entries: Any, kind: str, fields: dict[str, Any], boxes_keep: bool, masks_keep: bool
) -> None:
    annotation, _ = entries
    source = write([annotation(1, 1), annotation(2, 1, **fields), annotation(3, 3)])
    report = check_data(source.images, source.annotations)
    assert report.problems == {kind: [2]}
    assert not report.ok
    assert KINDS[kind].text in report.table()
    assert report.dropped_annotations == 1 - masks_keep
    for masks, keep in ((False, boxes_keep), (True, masks_keep)):
        dataset = CocoDataset([source], masks=masks, training=True)
        assert len(dataset) == 3
        _, target = dataset[0]
        assert len(target["boxes"]) == 1 + keep
        assert dataset.dropped.dropped_annotations == 1 - keep
        clipped = KINDS[kind].action == "clipped"
        touched = not keep or clipped or (masks and kind == "bad_polygon")
        assert bool(dataset.dropped_summary) == touched


GOOD_ANNOTATIONS: list[dict[str, Any]] = [
    *({"iscrowd": value} for value in (None, 0, 0.0, False, "0", "false", "False")),
    *({"ignore": value} for value in (0, False, "0", "false")),
    {"id": 2.0},
    {"image_id": 1.0},
    {"category_id": 7.0},
    {"bbox": [10, 10, 1, 1]},
]


@pytest.mark.parametrize("fields", GOOD_ANNOTATIONS)
def test_values_that_mean_the_usual(write: Write, entries: Any, fields: dict[str, Any]) -> None:
    annotation, _ = entries
    source = write([annotation(1, 1), annotation(2, 1, **fields)])
    report = check_data(source.images, source.annotations)
    assert report.ok, report.table()
    assert (report.annotations, report.crowds) == (2, 0)
    for training in (True, False):
        _, target = CocoDataset([source], masks=True, training=training)[0]
        assert (len(target["boxes"]), target["iscrowd"].tolist()) == (2, [0, 0])


@pytest.mark.parametrize("crowd", [1, 1.0, True, "1", "true", "TRUE"])
def test_values_that_mean_a_crowd(write: Write, entries: Any, crowd: object) -> None:
    annotation, _ = entries
    source = write([annotation(1, 1), annotation(2, 1, iscrowd=crowd)])
    report = check_data(source.images, source.annotations)
    assert report.ok
    assert report.crowds == 1
    assert len(CocoDataset([source], masks=True, training=True)[0][1]["boxes"]) == 1
    assert CocoDataset([source], masks=True, training=False)[0][1]["iscrowd"].tolist() == [0, 1]


def test_ids_of_annotations_that_are_not_used(write: Write, entries: Any) -> None:
    annotation, _ = entries
    source = write([annotation(1, 1), *(annotation(n, 1) | {"id": n} for n in ("2", True, 2.5, 2**63, [2]))])
    report = check_data(source.images, source.annotations)
    assert report.problems == {"annotation_id": ["2", "#2", "#3", 2**63, "#5"]}
    truth = CocoDataset([source], masks=True, training=False).ground_truth
    assert truth is not None
    assert [one["id"] for one in truth["annotations"]] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("wrong", [0, 1])
def test_boxes_that_are_fractions_of_the_image(write: Write, entries: Any, wrong: int) -> None:
    """They are found by the file, because [0, 0, 1, 1] is a box of pixels as well; a few other boxes do not matter."""
    annotation, _ = entries
    boxes = [[0.2, 0.3, 0.5, 0.25], [0, 0, 1, 1]] * 10 + [[10, 10, 20, 20]] * wrong
    source = write([annotation(n, 1, bbox=box) for n, box in enumerate(boxes, start=1)])
    report = check_data(source.images, source.annotations)
    assert len(report.problems["normalized_box"]) == 20
    assert ("no_objects" in report.problems) is not wrong
    for training in (True, False):
        if wrong:
            assert len(CocoDataset([source], masks=False, training=training)[0][1]["boxes"]) == 1
        else:
            with pytest.raises(InputError, match=KINDS["normalized_box"].text):
                CocoDataset([source], masks=False, training=training)


@pytest.mark.parametrize("others", [[[0, 0, 1, 1]], [[0.2, 0.3, 0.5, 0.25], [10, 10, 20, 20]]])
def test_boxes_of_pixels_that_lie_in_0_to_1(write: Write, entries: Any, others: list[Any]) -> None:
    annotation, _ = entries
    source = write([annotation(n, 1, bbox=box) for n, box in enumerate(others, start=1)])
    assert "normalized_box" not in check_data(source.images, source.annotations).problems
    assert len(CocoDataset([source], masks=False, training=True)[0][1]["boxes"]) == len(others)


def test_boxes_may_leave_the_image_by_rounding() -> None:
    assert box_problem([0, 0, 60.4, 40], 60, 40) is None
    assert box_problem([0, 0, 60.6, 40], 60, 40) == "box_partly_outside"
    assert box_problem([59.995, 0, 10, 10], 60, 40) == "box_outside"
