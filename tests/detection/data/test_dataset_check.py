"""A whole dataset: its splits, its figures, images that leak from one split into another, and a recipe for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vovnet.detection.config.loading import load_recipe
from vovnet.detection.data.checked_images import CheckedImage, CheckedObject
from vovnet.detection.data.dataset_check import check_dataset
from vovnet.detection.data.sources import named_data, splits_of
from vovnet.detection.data.statistics import sizes_of_images, statistics_lines
from vovnet.errors import InputError


def write_split(root: Path, split: str, seeds: list[int], boxes: list[list[float]]) -> None:
    (root / split).mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cell"}]}
    for image_id, seed in enumerate(seeds, start=1):
        pixels = np.random.default_rng(seed).integers(0, 256, (100, 200, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / split / f"{seed}.png")
        content["images"].append({"id": image_id, "file_name": f"{seed}.png", "width": 200, "height": 100})
        for box in boxes:
            number = len(content["annotations"]) + 1
            content["annotations"].append({"id": number, "image_id": image_id, "category_id": 1, "bbox": box})
    (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def test_figures_leaks_and_a_recipe(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [1, 2, 3], [[x, 10.0, 20.0, 40.0] for x in range(0, 120, 1)])
    write_split(tmp_path, "val", [3, 4], [[5.0, 5.0, 20.0, 40.0]])
    found = check_dataset(splits_of(tmp_path)[1])
    train, val = found.splits
    assert (train.name, train.report.ok, val.name, val.report.problems) == ("train", True, "val", {"leaked_image": [1]})
    assert not found.ok
    text = found.text()
    for words in ("200 wide, 100 high", "median 120", "median 28.3", "height / width median 2", "val/3.png is"):
        assert words in text
    values = {one.key: one.value for one in found.suggestions}
    assert values["model.box_detections_per_img"] == 200
    assert load_recipe("bccd", [one.override for one in found.suggestions]).model.box_detections_per_img == 200
    assert not check_dataset(splits_of(tmp_path)[1], decode=False).twins


def test_repeated_objects_and_areas_that_no_box_has(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [1], [[5.0, 5.0, 20.0, 40.0]] * 3 + [[5.0, 5.0, 20.0, 41.0]])
    file = tmp_path / "annotations" / "instances_train.json"
    content = json.loads(file.read_text())
    content["annotations"][3]["area"] = 5000
    file.write_text(json.dumps(content))
    (split,) = check_dataset(splits_of(tmp_path)[1]).splits
    assert split.report.problems == {"wrong_area": [4], "duplicate_annotation": [2, 3]}


def test_nearly_the_same_image_in_two_splits_is_mentioned(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [1, 2], [[5.0, 5.0, 20.0, 40.0]])
    write_split(tmp_path, "val", [3], [[5.0, 5.0, 20.0, 40.0]])
    coarse = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 10, 3), dtype=np.uint8))
    image = coarse.resize((200, 100), Image.Resampling.BICUBIC)
    image.save(tmp_path / "train" / "1.png")
    image.point(lambda value: min(255, value + 3)).save(tmp_path / "val" / "3.png")
    found = check_dataset(splits_of(tmp_path)[1])
    assert found.ok
    assert "leakage" in found.text()
    assert [(Path(one.first.name).name, Path(one.second.name).name) for one in found.twins] == [("1.png", "3.png")]


def images_with(counts: dict[int, int], box: tuple[float, float, float, float]) -> list[CheckedImage]:
    objects = [
        CheckedObject(category, box, 1.0, False, None, number) for category, n in counts.items() for number in range(n)
    ]
    crowd = CheckedObject(1, (0, 0, 300, 300), 1.0, True, None, 1)
    return [CheckedImage(1, "a", "a", 300, 300, [*objects, crowd]), CheckedImage(2, "b", "b", 100, 300, [])]


def test_balance_and_sizes_by_hand() -> None:
    images = images_with({1: 100, 2: 4}, (0, 0, 8, 32))
    lines = "\n".join(statistics_lines(images, {1: "cell", 2: "rare", 3: "never"}))
    assert "104 small" in lines
    assert "100 to 300 wide, 300 high" in lines
    assert "rare (4); 1 classes have none" in lines
    balanced = "\n".join(statistics_lines(images_with({1: 100, 2: 4}, (0, 0, 8, 32)), {1: "cell", 2: "rare"}))
    assert "25 times the objects of rare" in balanced
    sizes = sizes_of_images(images)
    assert sizes is not None
    assert (sizes.most, sizes.median, sizes.counts.tolist()) == (104, 16, [104, 0])
    assert statistics_lines(images[1:], {1: "cell"}) == []


def test_arguments_of_the_command(tmp_path: Path) -> None:
    for arguments in [(None, None, None), (tmp_path, tmp_path, None), (None, tmp_path, None), (None, None, tmp_path)]:
        with pytest.raises(InputError, match="--images"):
            named_data(*arguments)
    with pytest.raises(InputError, match="--split"):
        named_data(None, tmp_path, tmp_path / "a.json", "train")
