"""A field of COCO JSON states one value or none, whatever Python's truth value of it is."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from strange_json import flat_values

from vovnet.detection.data import fields

TRUE = (1, 1.0, True, "1", "true", "True", "TRUE")
FALSE = (0, 0.0, -0.0, False, "0", "false", "False", "FALSE")
NEITHER = (
    2,
    -1,
    0.5,
    float("nan"),
    float("inf"),
    "",
    " ",
    "no",
    "yes",
    "2",
    "null",
    [],
    [0],
    {},
    {"a": 0},
    None,
    10**400,
)


@pytest.mark.parametrize(("value", "expected"), [(v, True) for v in TRUE] + [(v, False) for v in FALSE])
def test_flags(value: Any, expected: bool) -> None:
    assert fields.flag(value) is expected


@pytest.mark.parametrize("value", NEITHER, ids=lambda value: str(value)[:9])
def test_values_that_are_no_flags(value: Any) -> None:
    assert fields.flag(value) is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, 3),
        (3.0, 3),
        (-(2**63) + 1, -(2**63) + 1),
        (2**63 - 1, 2**63 - 1),
        (2**63, None),
        (-(2**63), None),
        (2.0**63, None),
        (3.5, None),
        (float("nan"), None),
        (float("inf"), None),
        (True, None),
        ("3", None),
        (None, None),
        ([3], None),
    ],
)
def test_whole_numbers(value: Any, expected: int | None) -> None:
    found = fields.whole_number(value)
    assert found == expected
    assert found is None or type(found) is int


@pytest.mark.parametrize("value", [[1, 2, 3, 4.5], [0, 0, 0, 0], [-1, -2.0, 3, 4]])
def test_boxes(value: list[float]) -> None:
    assert fields.box(value) == tuple(value)


@pytest.mark.parametrize(
    "value",
    [
        *(None, "1,2,3,4", {"x": 1, "y": 2, "w": 3, "h": 4}, [1, 2, 3], [1, 2, 3, 4, 5]),
        *([1, 2, 3, wrong] for wrong in ("4", True, None, [4], 10**400, float("nan"), float("-inf"))),
    ],
)
def test_values_that_are_no_boxes(value: Any) -> None:
    assert fields.box(value) is None


@pytest.mark.parametrize("value", [0, -1, "400", True, None, [400], float("nan"), float("inf"), 2**63, 10**400])
def test_values_that_are_no_area(value: Any) -> None:
    assert fields.area(value) is None


@pytest.mark.parametrize("wrong", [0, -1, 60.5, "60", True, None, [60], 2**31, 10**400, float("nan")])
def test_values_that_are_no_image_size(wrong: Any) -> None:
    assert fields.image_size({"width": 60.0, "height": 40}) == (60, 40)
    assert fields.image_size({"width": wrong, "height": 40}) is None
    assert fields.image_size({"width": 60, "height": wrong}) is None
    assert fields.image_size({"width": 2**30, "height": 2**30}) is None


@pytest.mark.parametrize(
    ("entry", "names"),
    [
        ({"file_name": "a.jpg", "coco_url": "http://x/train2017/b.jpg"}, ["a.jpg"]),
        ({"coco_url": "http://images.cocodataset.org/train2017/0.jpg"}, ["train2017/0.jpg", "0.jpg"]),
        ({"file_name": None, "coco_url": "http://x/0.jpg?y=/z"}, ["0.jpg"]),
        ({"coco_url": "https://x/a%20b/c%20d.jpg#e"}, ["a b/c d.jpg", "c d.jpg"]),
        ({"coco_url": "http://x/a/%2e%2e/b.jpg"}, ["../b.jpg", "b.jpg"]),  # the folder of images refuses the first
        ({"coco_url": "http://["}, []),
        ({"coco_url": ""}, []),
        ({"coco_url": 5}, []),
        ({"coco_url": "http://x/\ud800.jpg"}, []),
        ({"file_name": 5, "coco_url": "http://x/0.jpg"}, []),
        ({"file_name": "\ud800"}, []),
        ({}, []),
    ],
)
def test_file_names(entry: dict[str, Any], names: list[str]) -> None:
    assert fields.file_names(entry) == names


@given(flat_values())
@settings(max_examples=50, deadline=None)
def test_any_value_is_read_without_an_error(value: Any) -> None:
    value = json.loads(json.dumps(value))
    assert fields.flag(value) in (None, False, True)
    assert fields.whole_number(value) in (None, value)
    assert fields.area(value) is None or fields.area(value) == float(value)
    fields.box(value)
    fields.image_size({"width": value, "height": value})
    for entry in ({"file_name": value}, {"coco_url": value}):
        assert all(isinstance(name, str) for name in fields.file_names(entry))
