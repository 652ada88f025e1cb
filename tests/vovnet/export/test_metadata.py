"""The metadata of exported files: written and read back, and refused when it is anything else."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vovnet.errors import InputError
from vovnet.export.metadata import ExportedInput, ExportMetadata, from_json

DETECTOR = ExportMetadata(
    kind="detector",
    version="1.2.3",
    input=ExportedInput(channels=3, dtype="float32", size=(480, 640), batch=2),
    categories=[{"id": 3, "name": "cell"}, {"id": 9, "name": "中\n"}],
    masks="box",
    box_format="xyxy_inclusive",
    preprocessing={"min_size": 800},
    thresholds={"score": 0.05, "nms": 0.5, "detections": 100},
    model={"backbone": "vovnet39"},
    precision="bf16",
)


def with_value(path: str, value: object) -> str:
    values: dict[str, Any] = json.loads(DETECTOR.to_json())
    *parents, last = path.split(".")
    inner = values
    for parent in parents:
        inner = inner[parent]
    inner[last] = value
    return json.dumps(values)


def test_what_is_written_is_read_back() -> None:
    assert from_json(DETECTOR.to_json(), "f") == DETECTOR


def test_the_text_is_the_documented_one() -> None:
    values = json.loads(DETECTOR.to_json())
    assert values["format"] == "vovnet-exported"
    assert values["format_version"] == 1
    assert values["input"] == {"channels": 3, "dtype": "float32", "size": [480, 640], "batch": 2}
    assert values["categories"] == [{"id": 3, "name": "cell"}, {"id": 9, "name": "中\n"}]


def test_a_dynamic_size_and_unknown_keys_are_read() -> None:
    read = from_json(with_value("input.size", None), "f")
    assert read.input.size is None
    assert from_json(with_value("new_key", [1]), "f") == DETECTOR


@pytest.mark.parametrize("text", [None, "", "no json", "[]", "{}", 7, "1" * 5000, "[" * 100_000])
def test_what_is_no_metadata_is_refused(text: object) -> None:
    with pytest.raises(InputError, match=r"model\.onnx"):
        from_json(text, "model.onnx")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("format", "vovnet-detector"),
        ("format_version", 2),
        ("format_version", True),
        ("kind", "segmenter"),
        ("version", 3),
        ("input", []),
        ("input.channels", 0),
        ("input.dtype", "int8"),
        ("input.size", [480]),
        ("input.size", [0, 4]),
        ("input.batch", "2"),
        ("masks", "polygon"),
        ("box_format", None),
        ("categories", []),
        ("categories", [{"id": 1}]),
        ("categories", [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]),
        ("categories", [{"id": 1, "name": "\ud800"}]),
        ("thresholds", None),
        ("precision", "fp64"),
    ],
)
def test_a_wrong_value_is_refused_by_its_name(path: str, value: object) -> None:
    with pytest.raises(InputError, match=path.rpartition(".")[2]):
        from_json(with_value(path, value), "model.onnx")


def test_a_value_that_is_not_json_cannot_be_written() -> None:
    with pytest.raises(InputError, match="metadata"):
        ExportMetadata(
            "detector", "1", ExportedInput(), [{"id": 1, "name": "a"}], thresholds={"nms": float("nan")}
        ).to_json()


values = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda one: st.lists(one, max_size=3))


@given(st.sampled_from(list(json.loads(DETECTOR.to_json()))), values)
def test_any_value_is_read_or_refused(key: str, value: object) -> None:
    with contextlib.suppress(InputError):
        from_json(with_value(key, value), "f")
