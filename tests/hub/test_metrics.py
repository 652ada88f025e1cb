"""Metrics on cards: which evaluation counts, and what a file of a stranger's run may hold."""

from __future__ import annotations

from typing import Any

import pytest

from vovnet.detection.config.loading import load_recipe
from vovnet.detection.zoo.published import PUBLISHED_ROWS
from vovnet.hub.metrics import UNNAMED, metrics_by_class, published_metrics, run_metrics

CAT = {"id": 1, "name": "cat", "AP": 0.1234, "AP50": 1, "objects": 7}
DOG = {"id": 2, "name": "dog", "AP": -1, "AP50": -1, "objects": 0}


def test_the_metrics_of_each_category() -> None:
    boxes, masks = metrics_by_class({"per_class": {"bbox": [CAT, DOG], "segm": [CAT | {"AP": 0.5}, DOG]}})
    assert (boxes.name, boxes.objects) == ("cat", 7)
    assert boxes.values == {"box AP": 12.34, "box AP50": 100, "mask AP": 50, "mask AP50": 100}
    assert set(masks.values.values()) == {None}
    (alone,) = metrics_by_class({"per_class": {"bbox": [CAT]}})
    assert list(alone.values) == ["box AP", "box AP50"]


@pytest.mark.parametrize(
    "tables",
    [
        None,
        [],
        {},
        {"bbox": None},
        {"bbox": [1]},
        {"bbox": [{"name": 3, "objects": 1}]},
        {"bbox": [{"name": "\ud800", "objects": 1}]},
        {"bbox": [{"name": "a", "objects": "many"}]},
        {"bbox": [CAT], "segm": [DOG]},
        {"bbox": [CAT], "segm": []},
        {"segm": [CAT]},
    ],
)
def test_what_is_no_such_table_is_left_out(tables: Any) -> None:
    assert metrics_by_class({"per_class": tables}) == ()
    assert metrics_by_class(None) == ()


@pytest.mark.parametrize("value", [None, "high", float("nan"), float("inf"), 2.0, -1, [0.5]])
def test_a_value_that_is_no_precision_is_not_counted(value: Any) -> None:
    (one,) = metrics_by_class({"per_class": {"bbox": [CAT | {"AP": value}]}})
    assert one.values == {"box AP": None, "box AP50": 100}
    assert run_metrics(load_recipe("quickstart"), {"box_ap": value}, "x") == ()


def test_a_run_is_measured_on_the_evaluation_data() -> None:
    recipe = load_recipe("quickstart")
    assert run_metrics(None, {"box_ap": 0.5}, "x") == run_metrics(recipe, None, "x") == ()
    (named,), (unnamed,) = (run_metrics(recipe, {"box_ap": 0.5}, name) for name in ("held back", None))
    assert (named.dataset, unnamed.dataset) == ("held back", UNNAMED)
    assert named.values == {"box AP": 50}


def test_published_metrics_are_claimed_by_their_authors() -> None:
    for row in PUBLISHED_ROWS:
        found = published_metrics(row)
        assert len(found) == 1 + (row.mask is not None)
        assert list(found[0].values.values()) == list(row.box)
        assert all(one.claimed_by and one.address for one in found)
