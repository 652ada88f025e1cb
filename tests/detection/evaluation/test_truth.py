"""The ground truth's fields are read by value: the same numbers for the same values, an error for anything else."""

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strange_json import flat_values

from vovnet.detection.evaluation.backends import run_coco_eval
from vovnet.detection.evaluation.coco_eval import IOU_TYPES
from vovnet.detection.evaluation.truth import IouType, coco_ground_truth
from vovnet.errors import InputError

SQUARE = [[2.0, 2.0, 10.0, 2.0, 10.0, 10.0, 2.0, 10.0]]


def truth(**fields: Any) -> dict[str, Any]:
    """Two objects, the second with other values."""
    first = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [2, 2, 8, 8], "area": 64, "iscrowd": 0}
    second = {**first, "id": 2, "bbox": [12, 2, 6, 6], "area": 36, **fields}
    return {
        "images": [{"id": 1, "width": 20, "height": 16}],
        "annotations": [{**one, "segmentation": SQUARE} for one in (first, second)],
        "categories": [{"id": 7, "name": "cat"}],
    }


def objects(content: dict[str, Any], iou_type: IouType = "bbox") -> list[dict[str, Any]]:
    return coco_ground_truth(content, iou_type).dataset["annotations"]


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize(
    ("crowd", "expected"),
    [(value, 0) for value in (None, 0, 0.0, False, "0", "False", np.int64(0), np.bool_(False))]
    + [(value, 1) for value in (1, 1.0, True, "1", "true", np.uint8(1), np.bool_(True))],
)
def test_crowds(iou_type: IouType, crowd: Any, expected: int) -> None:
    found = objects(truth(iscrowd=crowd), iou_type)
    assert [one["iscrowd"] for one in found] == [0, expected]


@pytest.mark.parametrize("iou_type", IOU_TYPES)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("iscrowd", value) for value in ("", "no", 2, -1, 0.5, [], [0], {}, float("nan"))),
        *(("area", value) for value in ("36", -1, True, [36], float("nan"), float("inf"), 10**400)),
        *(("bbox", value) for value in ("1", [], [1, 2, 3], [1, 2, 3, "4"], [1, 2, 3, -4], [1, 2, 3, float("nan")])),
        *(("bbox", value) for value in ([1, 2, float("inf"), 4], [1, 2, True, 4], {"x": 1}, np.zeros((2, 4)))),
        *(("image_id", value) for value in (None, "1", True, 1.5, [1], 2**63)),
        *(("category_id", value) for value in (None, "7", False, {}, 7.5)),
    ],
)
def test_values_that_a_field_cannot_have(iou_type: IouType, key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"annotations\[1\].*{key}"):
        objects(truth(**{key: value}), iou_type)


def test_scalars_and_arrays_of_numpy_are_numbers() -> None:
    plain, other = truth(), truth(bbox=np.array([12, 2, 6, 6], dtype=np.float32), area=np.float32(36), id=np.int64(2))
    other["annotations"][1] |= {"image_id": np.int64(1), "category_id": np.int32(7)}
    other["images"][0]["id"] = np.int64(1)
    assert objects(other) == objects(plain)


def test_what_is_missing_is_filled_in() -> None:
    assert objects(truth(area=None))[1]["area"] == 36
    assert objects(truth(area=None, bbox=None), "segm")[1] == {
        **objects(truth(), "segm")[1],
        "area": 64,
        "bbox": [2, 2, 8, 8],
    }
    with pytest.raises(InputError, match="bbox"):
        objects(truth(bbox=None))


@pytest.mark.parametrize("key", ["images", "categories"])
@pytest.mark.parametrize("number", [None, "1", True, 1.5])
def test_ids_of_images_and_categories(key: str, number: Any) -> None:
    content = truth()
    content[key].append({**content[key][0], "id": number})
    with pytest.raises(InputError, match="id"):
        objects(content)
    content[key][1]["id"] = content[key][0]["id"]
    with pytest.raises(InputError, match="two entries"):
        objects(content)


@pytest.mark.parametrize("size", [None, "16", 0, -1, 1.5, True])
def test_masks_need_the_size_of_the_image(size: Any) -> None:
    content = truth()
    content["images"][0]["height"] = size
    assert len(objects(content)) == 2
    with pytest.raises(InputError, match="width and height"):
        objects(content, "segm")


@given(
    key=st.sampled_from(["id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore", "segmentation"]),
    value=flat_values(),
    iou_type=st.sampled_from(IOU_TYPES),
)
@example(key="id", value=[], iou_type="bbox")
@example(key="id", value="False", iou_type="segm")
@settings(max_examples=60, deadline=None)
def test_any_value_is_evaluated_or_refused(key: str, value: Any, iou_type: IouType) -> None:
    try:
        complete = coco_ground_truth(truth(**{key: value}), iou_type, 2)
    except InputError:
        return
    result = {"image_id": 1, "category_id": 7, "score": 0.5, "bbox": [2, 2, 8, 8]}
    if iou_type == "segm":
        result["segmentation"] = complete.dataset["annotations"][0]["segmentation"]
    if iou_type == "keypoints":
        result["keypoints"] = [2, 2, 1, 8, 8, 1]
    precision = run_coco_eval(complete, [result], iou_type, [1], [0.05] * 2).stats[0]
    assert 0 <= precision <= 1 or (iou_type == "keypoints" and precision == -1)  # no object has labelled points
