"""A detector that knows the truth is perfect on every format; the data is the split, or the part, that was meant."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import label_files
import pytest
import torch
from label_files import SIZES, THINGS
from support import command
from tiny_runs import short_recipe
from torch import Tensor, nn

from vovnet.detection import evaluate
from vovnet.detection.checkpoints.folder import save_detector
from vovnet.detection.config.loading import recipe_to_yaml
from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.sources import read_source
from vovnet.detection.evaluation.sources import evaluation_dataset, evaluation_sources
from vovnet.detection.formats.finding import sources_of
from vovnet.detection.models.build import build_detector
from vovnet.errors import InputError

CATEGORIES = [{"id": 9, "name": "red cell"}, {"id": 4, "name": "cat"}, {"id": 5, "name": "dog"}]
LABELS = {str(one["name"]): label for label, one in enumerate(CATEGORIES, start=1)}


class Knowing(nn.Module):
    """Returns the objects of ``label_files``; it knows an image by its size."""

    recipe = replace(short_recipe().model, detector="faster_rcnn")
    categories = CATEGORIES

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        names = {size: name for name, size in SIZES.items()}
        return [self.truth(THINGS[names[image.shape[-1], image.shape[-2]]]) for image in images]

    @staticmethod
    def truth(things: list[label_files.Thing]) -> dict[str, Tensor]:
        boxes = [[x, y, x + w, y + h] for x, y, w, h in (one.box for one in things)]
        return {
            "boxes": torch.tensor(boxes).reshape(-1, 4),
            "labels": torch.tensor([LABELS[one.name] for one in things], dtype=torch.int64),
            "scores": torch.full((len(things),), 0.9),
        }


def write_plain_voc(folder: Path) -> Path:
    folder.mkdir()
    return label_files.write_voc(folder)


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: label_files.write_yolo(folder, splits=("train", "val")),
        write_plain_voc,
        label_files.write_labelme,
        label_files.write_via,
        label_files.write_via_csv,
        label_files.write_cvat,
        label_files.write_label_studio,
    ],
    ids=["yolo", "voc", "labelme", "via", "via_csv", "cvat", "label_studio"],
)
def test_the_truth_is_perfect_in_every_format(write: Callable[[Path], Path], tmp_path: Path) -> None:
    data = write(tmp_path / "data")
    metrics = evaluate(Knowing(), data, tmp_path / "out")
    assert metrics["bbox"]["AP"] == pytest.approx(1)
    assert {one["name"]: one["objects"] for one in metrics["per_class"]["bbox"]} == {"red cell": 1, "cat": 1, "dog": 1}
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["bbox"] == metrics["bbox"]


def names(sources: list[DataSource]) -> list[str]:
    found = [file for source in sources for file in read_source(source, "val")]
    return sorted(one["file_name"] for file in found for one in file.content.images)


def test_val_is_taken_or_else_test_and_never_train_by_itself(tmp_path: Path) -> None:
    for splits in (("train", "val"), ("train", "test"), ("train",)):
        label_files.write_yolo(tmp_path / splits[-1], splits=splits)
    assert evaluation_sources(tmp_path / "val")[0].split == "val"
    assert evaluation_sources(tmp_path / "test")[0].split == "test"
    with pytest.raises(InputError, match="split"):
        evaluation_sources(tmp_path / "train")
    assert evaluation_sources(tmp_path / "train", split="train")[0].split == "train"
    with pytest.raises(InputError, match="split"):
        evaluation_sources(tmp_path / "val", split="holdout")
    folder = label_files.write_voc(tmp_path / "voc", {"train": ["a.png"], "val": ["b.png"], "odd": ["c.png"]})
    assert [Path(one).name for one in names(evaluation_sources(folder))] == ["b.png"]
    assert [Path(one).name for one in names(evaluation_sources(folder, split="odd"))] == ["c.png"]


def written_run(folder: Path, train: list[DataSource], val: list[DataSource]) -> Path:
    recipe = short_recipe()
    folder.mkdir()
    recipe = replace(recipe, data=replace(recipe.data, train=train, val=val))
    (folder / "recipe.yaml").write_text(recipe_to_yaml(recipe))
    return folder


def test_a_run_is_evaluated_on_what_it_was_not_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = label_files.write_labelme(tmp_path / "data")
    for number in range(8):
        (folder / f"{number}.png").write_bytes((folder / "a.png").read_bytes())
        content = label_files.labelme_json("a.png", THINGS["a.png"]) | {"imagePath": f"{number}.png"}
        (folder / f"{number}.json").write_text(json.dumps(content))
    found = sources_of(folder)
    run = written_run(tmp_path / "run", found.train, found.val)
    held_out = names(found.val)
    assert 0 < len(held_out) < 11
    assert names(evaluation_sources(folder, run=run)) == held_out
    assert names(evaluation_sources(run=run)) == held_out
    assert len(names(evaluation_sources(folder))) == 11
    other = label_files.write_labelme(tmp_path / "other")
    assert len(names(evaluation_sources(other, run=run))) == 3
    capsys.readouterr()
    on_all = written_run(tmp_path / "on all", sources_of(folder, hold_out=False).train, [])
    assert len(names(evaluation_sources(folder, run=on_all))) == 11
    assert "trained on these" in capsys.readouterr().err


def test_without_data_or_with_two_kinds_it_is_one_line(tmp_path: Path) -> None:
    run = written_run(tmp_path / "run", [], [])
    for arguments in [(), (tmp_path, tmp_path), (None, tmp_path), (None, None, tmp_path)]:
        with pytest.raises(InputError, match="--images"):
            evaluation_sources(*arguments, run=run)
    for none in (tmp_path / "none", "hf:none", "hf:", "hf:../up"):
        with pytest.raises(InputError, match=r"none|hf"):
            evaluation_sources(none)
    bare: Any = nn.Linear(1, 1)
    with pytest.raises(InputError, match="recipe"):
        evaluation_dataset(bare, [])


def test_the_command_takes_a_folder_a_split_and_a_coco_file(tmp_path: Path) -> None:
    recipe = short_recipe().model
    torch.manual_seed(0)
    detector = build_detector(replace(recipe, num_classes=3))
    save_detector(tmp_path / "weights", detector, replace(recipe, num_classes=3), CATEGORIES)
    label_files.write_yolo(tmp_path / "yolo", splits=("train", "val"))
    label_files.write_images(tmp_path / "images")
    content = label_files.coco_content()
    content["categories"] = CATEGORIES
    ids = {label: CATEGORIES[label - 1]["id"] for label in LABELS.values()}
    for one in content["annotations"]:
        one["category_id"] = ids[LABELS[label_files.NAMES[one["category_id"] - 1]]]
    (tmp_path / "labels.json").write_text(json.dumps(content))
    data: list[list[object]] = [
        [tmp_path / "yolo"],
        [tmp_path / "yolo", "--split", "train"],
        ["--images", tmp_path / "images", "--annotations", tmp_path / "labels.json"],
    ]
    outputs = []
    for number, arguments in enumerate(data):
        out = tmp_path / f"out{number}"
        common = ["--weights", tmp_path / "weights", "--output", out, "--workers", "0", "--device", "cpu"]
        assert command("evaluate", *arguments, *common).code == 0
        outputs.append(json.loads((out / "metrics.json").read_text()))
    assert outputs[0] == outputs[1] == outputs[2]
    refused = command("evaluate", "--weights", tmp_path / "weights", "--output", tmp_path / "no")
    refused.refused("--images")
    assert not (tmp_path / "no").exists()
