"""Score thresholds: one for all categories, one for each, and those of an evaluation."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vovnet.errors import InputError
from vovnet.results.thresholds import Thresholds, threshold_argument, thresholds_for_counts

CATEGORIES = [{"id": 1, "name": "red"}, {"id": 2, "name": "white"}]


@given(
    st.lists(st.tuples(st.sampled_from(["red", "white"]), st.floats(0, 1))),
    st.dictionaries(st.sampled_from(["red", "white"]), st.floats(0, 1)),
)
def test_a_detection_passes_at_its_category_s_threshold(found, thresholds):
    detections = [{"category": name, "score": score} for name, score in found]
    passed = Thresholds.of(thresholds, CATEGORIES).passed(detections)
    assert passed == [one for one in detections if one["score"] >= thresholds.get(one["category"], 0.5)]


def test_one_number_is_for_all():
    assert Thresholds.of(np.float32(0.25)).of_category("red") == 0.25
    assert str(Thresholds.of(0.25)) == "0.25"


@pytest.mark.parametrize("bad", [1.5, -0.1, float("nan"), True, "0.5", None, {"red": 2}, {"red": None}])
def test_other_values_are_refused(bad):
    with pytest.raises(InputError, match="threshold"):
        Thresholds.of(bad)


def test_unknown_categories_are_refused():
    with pytest.raises(InputError, match=r"threshold: 'green'"):
        Thresholds.of({"green": 0.5}, CATEGORIES)


@pytest.mark.parametrize("text", ["1.5", "nan", "nowhere", ""])
def test_arguments_that_are_neither_number_nor_evaluation(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="threshold"):
        threshold_argument(text)


def test_the_thresholds_of_an_evaluation(tmp_path):
    rows = [{"name": "red", "count_threshold": 0.7}, {"name": "white", "count_threshold": 0.25}]
    metrics = tmp_path / "metrics.json"
    metrics.write_text(json.dumps({"per_class": {"bbox": rows}}), encoding="utf-8")
    expected = {"red": 0.7, "white": 0.25}
    assert thresholds_for_counts(tmp_path) == threshold_argument(str(metrics)) == expected


@pytest.mark.parametrize("text", ["[]", "{}", "{", '{"per_class": {"bbox": [{"name": "red"}]}}', '{"per_class": []}'])
def test_files_without_thresholds(text, tmp_path):
    (tmp_path / "metrics.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match="threshold"):
        thresholds_for_counts(tmp_path)
