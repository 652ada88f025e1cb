"""Categories and ground truth of a dataset of one's own are checked before anything is computed."""

from typing import Any

import numpy as np
import pytest

from vovnet.detection.data.declared import check_categories, check_ground_truth
from vovnet.errors import InputError

CATEGORIES: list[Any] = [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}]


def test_categories() -> None:
    given = ({"id": np.int64(3), "name": "cat", "supercategory": "animal"}, {"id": 8, "name": "dog"})
    assert check_categories(given, "data") == CATEGORIES
    assert check_categories([CATEGORIES[1], CATEGORIES[0]], "data")[0]["id"] == 8


@pytest.mark.parametrize(
    "wrong",
    [
        None, [], (), "cat", ["cat", "dog"], {3: "cat"}, [{"id": 3}], [{"name": "cat"}], [{"id": "3", "name": "cat"}],
        [{"id": 3.0, "name": "cat"}], [{"id": True, "name": "cat"}], [{"id": 3, "name": 7}], [None], 5,
        [{"id": 3, "name": "cat"}, {"id": 3, "name": "dog"}], [{"id": 3, "name": "\ud800"}],
    ],
)  # fmt: skip
def test_wrong_categories(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"^data: .*categories"):
        check_categories(wrong, "data")


def truth(**annotation: Any) -> dict[str, Any]:
    entry = {"image_id": 1, "category_id": 3, "bbox": [1, 2, 3.5, 4], "iscrowd": 0, "area": 7} | annotation
    return {"images": [{"id": 1, "height": 5, "width": 6}], "annotations": [entry], "categories": CATEGORIES}


@pytest.mark.parametrize("same", [{}, {"bbox": None}, {"area": None}, {"iscrowd": True}, {"bbox": np.ones(4)}])
def test_ground_truth(same: dict[str, Any]) -> None:
    assert check_ground_truth(truth(**same), CATEGORIES, "data")["images"][0]["id"] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"bbox": [float("nan"), 2, 3, 4]}, {"bbox": [1, 2, float("inf"), 4]}, {"bbox": [1, 2, 3]}, {"bbox": "box"},
        {"bbox": [1, 2, -3, 4]}, {"bbox": 4}, {"area": float("nan")}, {"area": "big"}, {"iscrowd": "0"}, {"iscrowd": 2},
        {"image_id": "1"}, {"image_id": None}, {"category_id": 3.5},
    ],
)  # fmt: skip
def test_wrong_annotations(wrong: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^data\.ground_truth: annotations\[0\]"):
        check_ground_truth(truth(**wrong), CATEGORIES, "data")


@pytest.mark.parametrize(
    "wrong",
    [None, [], {}, "coco.json", {"images": [], "annotations": []}, truth() | {"images": None},
     truth() | {"images": [1]}, truth() | {"categories": CATEGORIES[:1]}, truth() | {"categories": ["cat"]}],
)  # fmt: skip
def test_wrong_ground_truth(wrong: Any) -> None:
    with pytest.raises(InputError, match=r"^data\.ground_truth: "):
        check_ground_truth(wrong, CATEGORIES, "data")
