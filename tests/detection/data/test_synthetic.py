"""The generated dataset is sound, exact, the same for the same seed, and varied."""

import json
from pathlib import Path

import numpy as np
import pytest

from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.data.synthetic import CATEGORIES, generate_shapes
from vovnet.detection.data.validation import check_data
from vovnet.errors import InputError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DataSource]:
    return generate_shapes(tmp_path_factory.mktemp("shapes"), train=12, val=4, size=(120, 96))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_sound(made: dict[str, DataSource]) -> None:
    for split, count in (("train", 12), ("val", 4)):
        report = check_data(made[split].images, made[split].annotations)
        assert report.ok, report.table()
        assert report.images == count
        assert report.masks == report.annotations >= count
        assert report.images_without_objects == 0
    names = list(check_data(made["train"].images, made["train"].annotations).objects_per_category)
    assert names == [category["name"] for category in CATEGORIES]


def test_boxes_and_masks_agree(made: dict[str, DataSource]) -> None:
    dataset = CocoDataset([made["train"]], masks=True, training=True)
    for image, target in (dataset[index] for index in range(len(dataset))):
        assert image.shape == (3, 96, 120)
        for box, mask, area in zip(target["boxes"], target["masks"].numpy(), target["area"], strict=True):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert box.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            assert mask.sum() == area > 30
        assert target["masks"].sum(dim=0).max() == 1  # what is covered belongs to the upper shape alone


def test_shapes_stand_out(made: dict[str, DataSource]) -> None:
    dataset = CocoDataset([made["train"]], masks=True, training=True)
    for image, target in (dataset[index] for index in range(len(dataset))):
        ground = image[:, target["masks"].sum(dim=0) == 0].float().mean(dim=1)
        for mask in target["masks"]:
            assert (image[:, mask.bool()].float().mean(dim=1) - ground).abs().sum() > 60


def test_whole_and_covered_shapes(tmp_path: Path) -> None:
    source = generate_shapes(tmp_path, train=6, val=1, max_shapes=8)["train"]
    kinds = {type(one["segmentation"]) for one in json.loads(Path(source.annotations).read_text())["annotations"]}
    assert kinds == {list, dict}


def test_the_same_bytes_for_the_same_seed(tmp_path: Path) -> None:
    for name, options in (("a", {}), ("b", {}), ("c", {"seed": 1})):
        generate_shapes(tmp_path / name, train=3, val=2, size=(64, 64), **options)
    for half in ("train/.tmp-0123456789abcdef.png", "annotations/.tmp-0123456789abcdef.json"):  # of a killed process
        (tmp_path / "b" / half).touch()
    generate_shapes(tmp_path / "b", train=3, val=2, size=(64, 64))  # over itself
    one, two, other = (contents(tmp_path / name) for name in "abc")
    assert one == two
    assert one.keys() == other.keys() == {
        "train/000001.png", "train/000002.png", "train/000003.png", "val/000004.png", "val/000005.png",
        "annotations/instances_train.json", "annotations/instances_val.json",
    }  # fmt: skip
    assert all(one[name] != other[name] for name in one)


@pytest.mark.parametrize("wrong", [{"size": (31, 64)}, {"train": 0}, {"val": 0}, {"max_shapes": 0}])
def test_arguments_are_checked(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        generate_shapes(tmp_path, **wrong)
