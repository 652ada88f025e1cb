"""COCO JSON that a stranger wrote is reported, left out or refused in one line: no traceback, no file from outside."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from strange_json import flat_values, mutated, mutated_text

from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.data.masks import to_rle
from vovnet.detection.data.validation import check_data
from vovnet.detection.evaluation.coco_eval import CocoEvaluator
from vovnet.detection.legacy.data import LegacyCocoDataset
from vovnet.errors import InputError
from vovnet.results.detections import ImageDetections

SQUARE = [2.0, 2.0, 10.0, 2.0, 10.0, 10.0, 2.0, 10.0]
RLE = {"size": [16, 20], "counts": [100, 60, 160]}
COMPRESSED = {"size": [16, 20], "counts": "T3l1P5"}
VALID: dict[str, Any] = {
    "images": [
        {"id": 1, "file_name": "1.png", "width": 20, "height": 16},
        {"id": 2, "file_name": "sub/2.png", "width": 20, "height": 16},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 7, "bbox": [2, 2, 8, 8.5], "area": 64.0, "iscrowd": 0},
        {"id": 2, "image_id": 2, "category_id": 9, "bbox": [0, 0, 20, 16], "iscrowd": 1, "segmentation": RLE},
        {"id": 3, "image_id": 2, "category_id": 7, "bbox": [1, 1, 9, 9], "iscrowd": 0, "segmentation": COMPRESSED},
    ],
    "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
}
VALID["annotations"][0]["segmentation"] = [SQUARE]

KNOWN: list[tuple[list[Any], Any]] = [
    (["categories", 0, "name"], "\udcff"),
    (["categories", 0, "name"], "a\nb\x1b[31m"),
    (["categories", 0, "id"], 2**63),
    (["categories", 0, "id"], 2**63 - 1),
    (["categories", 0, "id"], 1.5),
    (["categories", 0], [[[]]]),
    (["images", 0, "file_name"], "\ud800/1.png"),
    (["images", 0, "file_name"], "\udcff.png"),
    (["images", 0, "file_name"], "../x.png"),
    (["images", 0, "file_name"], "1.png\0"),
    (["images", 0, "id"], 2**63 - 1),
    (["images", 0, "id"], 10**400),
    (["images", 0, "width"], 2**31 - 1),
    (["images", 0, "height"], 2**65),
    (["annotations", 0, "id"], 10**30),
    (["annotations", 0, "id"], "\ud800"),
    (["annotations", 0, "area"], 1e308),
    (["annotations", 0, "area"], float("nan")),
    (["annotations", 0, "iscrowd"], "0"),
    (["annotations", 0, "iscrowd"], {"a": 1}),
    (["annotations", 0, "bbox"], [-1e308, 2, 1.5e308, 4]),
    (["annotations", 0, "bbox"], [[1], 2, 3, 4]),
    (["annotations", 0, "bbox"], [True, 2, 3, 4]),
    (["annotations", 0, "segmentation"], [[[1, 2], 3, 4, 5, 6, 7]]),
    (["annotations", 0, "segmentation"], [[0, 0] + [500, 500, -500, -500] * 4000]),
    (["annotations", 1, "segmentation"], {**RLE, "size": [16.0, 20.0]}),
    (["annotations", 1, "segmentation"], {**RLE, "counts": ["100", 60.0, 160]}),
    (["annotations", 1, "segmentation"], {**RLE, "extra": {"\ud800": [[[[]]]]}}),
    (["annotations", 2, "segmentation"], {**COMPRESSED, "counts": "\ud800"}),
]

LOAD = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def test_the_valid_file_is_sound(folder: Path) -> None:
    source = source_of(folder, json.dumps(VALID))
    assert check_data(source.images, source.annotations).ok


def changed(path: list[Any], value: Any) -> dict[str, Any]:
    """Return a copy of ``VALID`` with another value at a path."""
    content: Any = json.loads(json.dumps(VALID))
    *way, last = path
    place = content
    for step in way:
        place = place[step]
    place[last] = value
    return content


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two images in a folder, and one outside of it."""
    root = tmp_path_factory.mktemp("strange")
    (root / "images" / "sub").mkdir(parents=True)
    for name in ("images/1.png", "images/sub/2.png", "x.png"):
        Image.new("RGB", (20, 16), (90, 120, 30)).save(root / name)
    return root


def source_of(folder: Path, text: str) -> DataSource:
    path = folder / "annotations.json"
    path.write_text(text, encoding="utf-8")
    return DataSource(images=str(folder / "images"), annotations=str(path))


def outcome(function: Callable[[], Any]) -> Any:
    """Return a result, or None after an ``InputError`` of one printable line."""
    try:
        return function()
    except InputError as error:
        text = str(error)
        assert text.isprintable()
        assert len(text) < 2000
        return None


def check(folder: Path, text: str) -> None:
    """Check the data, then load every sample that is left, in every way."""
    source = source_of(folder, text)
    report = outcome(lambda: check_data(source.images, source.annotations))
    if report is not None:
        (report.table() + report.summary()).encode()
    for masks in (False, True):
        for training in (False, True):
            load(folder, outcome(lambda t=training, m=masks: CocoDataset([source], masks=m, training=t)), report)
        load(folder, outcome(lambda m=masks: LegacyCocoDataset([source], masks=m)), report)
    load(folder, outcome(lambda: CocoDataset([source, source], masks=False, training=False)), report)


def load(folder: Path, dataset: CocoDataset | None, report: Any) -> None:
    if dataset is None:
        return
    assert report is not None
    json.dumps(dataset.categories, ensure_ascii=False).encode()
    dataset.dropped_summary.encode()
    for index in range(len(dataset)):
        assert Path(os.path.realpath(dataset._paths[index])).is_relative_to(os.path.realpath(folder / "images"))
        sample = outcome(lambda i=index: dataset[i])
        if sample is not None:
            _, target = sample
            assert target["boxes"].isfinite().all()
            assert target["area"].isfinite().all()
            assert "masks" not in target or len(target["masks"]) == len(target["boxes"])
    if dataset.ground_truth is not None:
        json.dumps(dataset.ground_truth, allow_nan=False, ensure_ascii=False).encode()
        scores(dataset.ground_truth)


def scores(truth: dict[str, Any]) -> None:
    """Evaluate detections that are equal to the truth."""
    masks = all("segmentation" in one for one in truth["annotations"])
    evaluator = CocoEvaluator(truth, ["bbox", "segm"] if masks else ["bbox"])
    for image in truth["images"]:
        size = (image["height"], image["width"])
        objects = [one for one in truth["annotations"] if one["image_id"] == image["id"]]
        found = ImageDetections(
            image["id"],
            np.array([one["bbox"] for one in objects], dtype=np.float32).reshape(-1, 4),
            np.full(len(objects), 0.9, dtype=np.float32),
            np.array([one["category_id"] for one in objects], dtype=np.int64),
            [counts(one["segmentation"], size) for one in objects] if masks else None,
            size,
        )
        evaluator.update([found])
    result = outcome(evaluator.summarize)
    assert result is None or result["bbox"]["AP"] <= 1


def counts(segmentation: Any, size: tuple[int, int]) -> bytes:
    found = to_rle(segmentation, *size)["counts"]
    return found.encode() if isinstance(found, str) else found


@pytest.mark.filterwarnings("error::RuntimeWarning", "ignore:left out of training")
@given(content=mutated(VALID))
@LOAD
def test_mutated_files(folder: Path, content: Any) -> None:
    check(folder, json.dumps(content))


@pytest.mark.filterwarnings("error::RuntimeWarning", "ignore:left out of training")
@given(text=mutated_text(VALID))
@LOAD
def test_mutated_texts(folder: Path, text: str) -> None:
    check(folder, text)


@pytest.mark.filterwarnings("error::RuntimeWarning", "ignore:left out of training")
@pytest.mark.parametrize(("path", "value"), KNOWN, ids=map(str, range(len(KNOWN))))
def test_known_cases(folder: Path, path: list[Any], value: Any) -> None:
    check(folder, json.dumps(changed(path, value)))


FIELDS = [
    *(["images", 0, key] for key in ("id", "file_name", "width", "height", "coco_url")),
    *(["annotations", 0, key] for key in ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "ignore")),
    *(["annotations", 0, "bbox", 2], ["annotations", 0, "segmentation"], ["annotations", 1, "segmentation", "counts"]),
    *(["categories", 0, "id"], ["categories", 0, "name"]),
]


@given(path=st.sampled_from(FIELDS), value=flat_values())
@LOAD
def test_training_evaluation_and_the_check_agree(folder: Path, path: list[Any], value: Any) -> None:
    """They use the same objects. After "nothing is wrong" all accept the file, and what is used is what is stated."""
    source = source_of(folder, json.dumps(changed(path, value)))
    report = outcome(lambda: check_data(source.images, source.annotations))
    training = outcome(lambda: CocoDataset([source], masks=False, training=True))
    evaluation = outcome(lambda: CocoDataset([source], masks=False, training=False))
    if report is None:
        assert training is None
        assert evaluation is None
        return
    if report.ok:
        assert training is not None
        assert evaluation is not None
        assert outcome(lambda: CocoDataset([source], masks=True, training=True)) is not None
        assert report.annotations - report.crowds == len(training._boxes)
    if training is not None and evaluation is not None:
        assert np.array_equal(training._boxes, evaluation._boxes[evaluation._crowds == 0])
        assert evaluation.ground_truth is not None
        assert len(evaluation.ground_truth["annotations"]) == report.annotations - training.dropped.dropped_annotations
    if path[-1] == "iscrowd" and evaluation is not None:
        stated = {"0": 0, "False": 0, "1": 1, "5": None}.get(value) if isinstance(value, str) else value
        expected = 0 if value is None else stated if stated in (0, 1) and not isinstance(stated, list | dict) else None
        crowds = [one["iscrowd"] for one in evaluation.ground_truth["annotations"] if one["bbox"] == [2, 2, 8, 8.5]]
        assert crowds == ([] if expected is None else [expected])


@pytest.mark.parametrize("name", ["\udcff"])
def test_names_that_are_not_unicode_are_refused(folder: Path, name: str) -> None:
    source = source_of(folder, json.dumps(changed(["categories", 0, "name"], name)))
    for read in (
        lambda: check_data(source.images, source.annotations),
        lambda: CocoDataset([source], masks=False, training=True),
    ):
        with pytest.raises(InputError, match=r"categories\[0\]"):
            read()
