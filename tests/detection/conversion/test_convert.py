"""A dataset keeps its objects through every format; nothing is half-written; another library reads what is written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import label_files
import numpy as np
import pytest
from label_files import NAMES, SIZES, THINGS
from PIL import Image
from pycocotools import mask
from pycocotools.coco import COCO
from support import contents

from vovnet.detection.config.sources import DataSource
from vovnet.detection.conversion.convert import convert_data
from vovnet.detection.conversion.dataset import read_dataset
from vovnet.detection.data.masks import decode_masks
from vovnet.detection.data.sources import splits_of
from vovnet.detection.data.validation import check_source
from vovnet.errors import InputError

Objects = dict[str, list[tuple[str, list[float]]]]


def objects_of(folder: Path, split: str = "train") -> Objects:
    """Name of each image without suffix to the class and box of its objects."""
    dataset = read_dataset(*splits_of(folder))
    names = {one["id"]: one["name"] for one in dataset.categories}
    (part,) = [one for one in dataset.splits if one.name in (split, "")]
    return {
        Path(image.file_name).stem.removesuffix("_2"): [
            (names[one.category_id], list(one.box)) for one in image.objects
        ]
        for image in part.images
    }


TRUTH: Objects = {Path(name).stem: [(one.name, list(one.box)) for one in things] for name, things in THINGS.items()}


def same(found: Objects, truth: Objects = TRUTH) -> bool:
    assert found.keys() == truth.keys()
    for name, things in truth.items():
        assert [one[0] for one in found[name]] == [one[0] for one in things]
        for (_, box), (_, expected) in zip(found[name], things, strict=True):
            assert box == pytest.approx(expected, abs=1e-3)
    return True


@pytest.mark.parametrize("first", ["coco", "yolo", "voc"])
@pytest.mark.parametrize("second", ["coco", "yolo", "voc"])
def test_objects_come_back_from_every_format(first: Any, second: Any, tmp_path: Path) -> None:
    label_files.write_yolo(tmp_path / "data", splits=("train", "val"))
    text = convert_data(tmp_path / "data", tmp_path / "a", first)
    assert "6 images, 6 objects" in text
    convert_data(tmp_path / "a", tmp_path / "b", second, link=True)
    for folder in (tmp_path / "a", tmp_path / "b"):
        assert same(objects_of(folder))
        assert same(objects_of(folder, "val"))
    # One object has a mask, so that boxes without one are reported where masks are kept.
    for report in check_source(DataSource(folder=str(tmp_path / "b"))):
        assert report.problems.keys() <= {"no_mask", "no_usable_mask"}


def test_pycocotools_reads_what_is_written(tmp_path: Path) -> None:
    label_files.write_labelme(tmp_path / "data")
    convert_data(tmp_path / "data", tmp_path / "out", "coco")
    coco = COCO(str(tmp_path / "out" / "annotations" / "instances.json"))
    assert [one["name"] for one in coco.loadCats(coco.getCatIds())] == sorted(NAMES)
    boxes = {coco.loadImgs(one["image_id"])[0]["file_name"]: one["bbox"] for one in coco.loadAnns(coco.getAnnIds())}
    assert boxes["b.png"] == list(THINGS["b.png"][0].box)
    (shape,) = [one for one in coco.loadAnns(coco.getAnnIds()) if one.get("segmentation")]
    truth = decode_masks([[list(label_files.TRIANGLE)]], 40, 60)[0].numpy()
    assert (coco.annToMask(shape) == truth).all()
    for name in SIZES:
        assert (tmp_path / "out" / "images" / name).read_bytes() == (tmp_path / "data" / name).read_bytes()


@pytest.mark.parametrize("to", ["yolo", "voc"])
def test_supervision_reads_what_is_written(to: Any, tmp_path: Path) -> None:
    supervision = pytest.importorskip("supervision", reason="the second reader of YOLO and VOC is not installed")
    label_files.write_voc(tmp_path)
    convert_data(tmp_path, tmp_path.parent / f"{tmp_path.name}-out", to)
    out = tmp_path.parent / f"{tmp_path.name}-out"
    if to == "yolo":
        dataset = supervision.DetectionDataset.from_yolo(
            str(out / "images"), str(out / "labels"), str(out / "data.yaml")
        )
    else:
        dataset = supervision.DetectionDataset.from_pascal_voc(str(out / "JPEGImages"), str(out / "Annotations"))
    found = {}
    for path, _, detections in dataset:
        corners = detections.xyxy.reshape(-1, 4)
        boxes = np.concatenate((corners[:, :2], corners[:, 2:] - corners[:, :2]), axis=1).tolist()
        classes = [dataset.classes[number] for number in detections.class_id]
        found[Path(path).stem] = list(zip(classes, boxes, strict=True))
    for name, things in TRUTH.items():
        # supervision rounds VOC's corners to whole pixels, counted from 1.
        for (kind, box), (expected_kind, expected) in zip(found[name], things, strict=True):
            assert kind == expected_kind
            assert box == pytest.approx(expected, abs=1.01)


def test_what_a_format_cannot_say_is_said(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    label_files.write_images(tmp_path / "data")
    content = label_files.coco_content()
    disc = np.hypot(*(np.indices((40, 60)) - np.array([20, 30])[:, None, None])) < 9
    rle = mask.encode(np.asfortranarray(disc.astype(np.uint8)))
    rle["counts"] = rle["counts"].decode()
    content["annotations"][0] |= {"segmentation": rle}
    square = [10.0, 10.0, 20.0, 10.0, 20.0, 20.0, 10.0, 20.0]
    content["annotations"][1] |= {"segmentation": [square, [value + 15 for value in square]]}
    content["annotations"][2] |= {"iscrowd": 1, "segmentation": {"size": [80, 50], "counts": [0, 4000]}}
    (tmp_path / "data" / "labels.json").write_text(json.dumps(content))
    text = convert_data(tmp_path / "data", tmp_path / "yolo", "yolo")
    for words in ("1 crowds", "1 masks given as run lengths", "1 masks of several polygons", "no split 'val'"):
        assert words in text
    lines = (tmp_path / "yolo" / "labels" / "a.txt").read_text().splitlines()
    assert lines[1].split()[0] == "2"
    drawn = [
        decode_masks([[[float(value) * (60, 40)[axis % 2] for axis, value in enumerate(line.split()[1:])]]], 40, 60)
        for line in lines
    ]
    assert (drawn[0][0].numpy() != disc).sum() <= 0.1 * disc.sum()
    # The bridge between both squares has no width.
    both = decode_masks([[square, [value + 15 for value in square]]], 40, 60)
    assert drawn[1].ne(both).sum() <= 15
    assert "3 masks are left out" in convert_data(tmp_path / "data", tmp_path / "voc", "voc")
    assert "<difficult>1" in (tmp_path / "voc" / "Annotations" / "b.xml").read_text()


def test_keypoints_keep_their_names_and_mirror(tmp_path: Path) -> None:
    config = label_files.write_yolo(tmp_path / "data")
    config.write_text(
        "train: images/train\nnames: [man]\nkpt_shape: [2, 3]\nflip_idx: [1, 0]\n"
        "kpt_names: {0: [left eye, right eye]}\n"
    )
    labels = tmp_path / "data" / "labels" / "train"
    (labels / "b.txt").unlink()
    (labels / "a.txt").write_text("0 0.5 0.5 0.5 0.5 0.5 0.25 2 0.25 0.5 1\n")
    convert_data(config, tmp_path / "coco", "coco")
    convert_data(tmp_path / "coco", tmp_path / "yolo", "yolo")
    assert "flip_idx:\n- 1\n- 0" in (tmp_path / "yolo" / "data.yaml").read_text()
    parts = (tmp_path / "yolo" / "labels" / "train" / "a.txt").read_text().split()
    assert [float(one) for one in parts] == [0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25, 2, 0.25, 0.5, 1]


def test_what_cannot_be_used_is_left_out_and_said(tmp_path: Path) -> None:
    config = label_files.write_yolo(tmp_path / "data")
    lines = "0 0.95 0.5 0.2 0.2\n7 0.5 0.5 0.1 0.1\n0 nan 0 0 0\n"
    (tmp_path / "data" / "labels" / "train" / "a.txt").write_text(lines)
    text = convert_data(config, tmp_path / "out", "yolo")
    assert "box partly outside" in text
    assert "2 of 4 annotations" in text
    assert (tmp_path / "out" / "labels" / "train" / "a.txt").read_text() == "0 0.925 0.5 0.15 0.2\n"


def test_equal_names_of_images_become_different(tmp_path: Path) -> None:
    for part in ("one", "two"):
        label_files.write_images(tmp_path / "data" / part / "images")
        labels = tmp_path / "data" / part / "labels"
        labels.mkdir()
        (labels / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n" if part == "one" else "")
    (tmp_path / "data" / "data.yaml").write_text("train: [one/images, two/images]\nnames: [cat]\n")
    convert_data(tmp_path / "data", tmp_path / "out", "voc")
    names = sorted(path.name for path in (tmp_path / "out" / "JPEGImages").iterdir())
    assert names == ["a.png", "a_2.png", "b.png", "b_2.png", "c.png", "c_2.png"]
    objects = [
        len(image.objects) for split in read_dataset(*splits_of(tmp_path / "out")).splits for image in split.images
    ]
    assert sorted(objects) == [0, 0, 0, 0, 0, 1]


def test_images_whose_labels_follow_no_rotation_are_written_without_it(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40), (9, 90, 200)).save(tmp_path / "data" / "a.jpg", exif=exif)
    content = label_files.coco_content(["a.png"])
    content["images"][0]["file_name"] = "a.jpg"
    (tmp_path / "data" / "labels.json").write_text(json.dumps(content))
    convert_data(tmp_path / "data", tmp_path / "out", "yolo")
    with Image.open(tmp_path / "out" / "images" / "a.png") as image:
        assert (image.size, image.getexif().get(0x0112)) == ((60, 40), None)


def test_links_and_copies(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    label_files.write_voc(tmp_path / "data")
    source = tmp_path / "data" / "JPEGImages" / "a.png"
    convert_data(tmp_path / "data", tmp_path / "linked", "yolo", link=True)
    convert_data(tmp_path / "data", tmp_path / "copied", "yolo")
    assert os.path.samefile(source, tmp_path / "linked" / "images" / "a.png")
    assert not os.path.samefile(source, tmp_path / "copied" / "images" / "a.png")


def test_a_folder_in_use_is_refused_and_an_error_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    label_files.write_yolo(tmp_path / "data")
    out = tmp_path / "out"
    convert_data(tmp_path / "data", out, "coco")
    before = contents(out)
    with pytest.raises(InputError, match="not empty"):
        convert_data(tmp_path / "data", out, "coco")
    from vovnet.detection.conversion import writing

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(writing.shutil, "copyfile", fail)
    for folder in (out, tmp_path / "new"):
        with pytest.raises(OSError, match="space"):
            convert_data(tmp_path / "data", folder, "coco", overwrite=True)
    assert contents(out) == before
    assert not (tmp_path / "new").exists()
    monkeypatch.undo()
    (tmp_path / "data" / "labels" / "train" / "b.txt").write_text("")
    convert_data(tmp_path / "data", out, "coco", overwrite=True)
    assert contents(out) != before
    assert sum(map(len, objects_of(out).values())) == 2


@pytest.mark.parametrize("out", [".", "data", "data/new", "data/images"])
def test_an_output_in_the_data_is_refused(out: str, tmp_path: Path) -> None:
    label_files.write_yolo(tmp_path / "data")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="outside of the data"):
        convert_data(tmp_path / "data", tmp_path / out, "coco", overwrite=True)
    assert contents(tmp_path) == before


def test_nothing_usable_is_one_line(tmp_path: Path) -> None:
    config = label_files.write_yolo(tmp_path / "data")
    for path in (tmp_path / "data" / "labels" / "train").iterdir():
        path.write_bytes(b"\xff")
    (tmp_path / "data" / "images" / "train" / "c.png").unlink()
    with pytest.raises(InputError, match="no usable image"):
        convert_data(config, tmp_path / "out", "coco")
    with pytest.raises(InputError, match="to: expected"):
        convert_data(config, tmp_path / "out", "pascal")  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
