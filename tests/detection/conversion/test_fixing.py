"""The mended copy has nothing wrong any more, keeps what was right, and lists each change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import label_files
import pytest
from PIL import Image
from support import contents

from vovnet.detection.config.sources import DataSource
from vovnet.detection.conversion.fixing import fix_data
from vovnet.detection.data.dataset_check import check_dataset
from vovnet.detection.data.sources import splits_of
from vovnet.detection.data.validation import check_source
from vovnet.errors import InputError


def fix(folder: Path, output: Path) -> str:
    return fix_data(*splits_of(folder), output)


def recolour(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        Image.new("RGB", label_files.SIZES[name], (9, 200, 40 * number)).save(folder / name)


def faulty(folder: Path) -> dict[str, Any]:
    """A COCO file with a fault of each kind that can be mended, and sound objects beside them."""
    folder.mkdir()
    label_files.write_images(folder)
    content = label_files.coco_content()
    for entry in content["annotations"]:
        entry.pop("segmentation", None)
    sound = dict(content["annotations"][0])
    for change in (
        {"bbox": [50.0, 10.0, 30.0, 10.0]},
        {"bbox": [5.0, 5.0, 0.0, 10.0]},
        {"bbox": [90.0, 90.0, 5.0, 5.0]},
        {"bbox": [5.0, 5.0, 10.0, 10.0], "area": 5000},
        {"bbox": [5.0, 5.0, 11.0, 10.0], "area": -1},
        {"category_id": 77},
        {"bbox": [1, 2, None, 4]},
        {},
    ):
        content["annotations"].append({**sound, "id": len(content["annotations"]) + 1, **change})
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40), (1, 2, 3)).save(folder / "turned.jpg", exif=exif)
    (folder / "broken.png").write_bytes(b"\x89PNG")
    Image.new("RGB", (70, 30)).save(folder / "other.png")
    for number, (name, size) in enumerate(
        {
            "turned.jpg": (60, 40),
            "broken.png": (5, 5),
            "none.png": (5, 5),
            "../out.png": (5, 5),
            "other.png": (50, 50),
        }.items(),
        start=10,
    ):
        content["images"].append({"id": number, "file_name": name, "width": size[0], "height": size[1]})
    content["annotations"].append({"id": 99, "image_id": 14, "category_id": 1, "bbox": [10, 10, 60, 40]})
    (folder / "labels.json").write_text(json.dumps(content))
    return content


def test_a_mended_copy_is_sound_and_lists_what_was_changed(tmp_path: Path) -> None:
    faulty(tmp_path / "data")
    before = contents(tmp_path / "data")
    text = fix(tmp_path / "data", tmp_path / "out")
    assert contents(tmp_path / "data") == before
    (report,) = check_source(DataSource(folder=str(tmp_path / "out")))
    assert report.ok, report.table()
    assert (report.images, report.annotations) == (5, 7)
    content = json.loads((tmp_path / "out" / "annotations" / "instances.json").read_text())
    boxes = [(one["bbox"], one["area"]) for one in content["annotations"]]
    assert ([50.0, 10.0, 10.0, 10.0], 100.0) in boxes
    assert ([5.0, 5.0, 10.0, 10.0], 100.0) in boxes
    assert ([10.0, 10.0, 60.0, 20.0], 1200.0) in boxes
    with Image.open(tmp_path / "out" / "images" / "turned.png") as image:
        assert (image.size, image.getexif().get(0x0112)) == ((60, 40), None)
    changes = (tmp_path / "out" / "changes.txt").read_text().splitlines()
    assert f"{len(changes)} changes" in text
    for words in (
        "box partly outside", "zero or negative width", "entirely outside", "area computed", "area that is not",
        "category that is not listed", "four finite numbers", "repeated", "missing image", "leaves the folder",
        "size from the file: other.png is 70x30", "broken.png",
    ):  # fmt: skip
        assert any(words in line for line in changes), words


def test_sound_data_is_copied_without_a_change(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    label_files.write_voc(tmp_path / "data")
    assert "0 changes" in fix(tmp_path / "data", tmp_path / "out")
    assert (tmp_path / "out" / "changes.txt").read_text() == ""
    content = json.loads((tmp_path / "out" / "annotations" / "instances.json").read_text())
    assert len(content["annotations"]) == 3


def test_nothing_left_is_one_line_and_writes_nothing(tmp_path: Path) -> None:
    faulty(tmp_path / "data")
    for path in (tmp_path / "data").glob("*.[pj][np]g"):
        path.unlink()
    with pytest.raises(InputError, match="nothing usable"):
        fix(tmp_path / "data", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_fault_of_yolo_is_dropped(tmp_path: Path) -> None:
    config = label_files.write_yolo(tmp_path / "data", splits=("train", "val"))
    recolour(tmp_path / "data" / "images" / "val", "a.png", "b.png", "c.png")
    lines = "0 0.5 0.5 0.2 0.2\n9 0.5 0.5 0.2 0.2\nx\n0 30 20 5 5\n"
    (tmp_path / "data" / "labels" / "val" / "a.txt").write_text(lines)
    text = fix(config.parent, tmp_path / "out")
    assert "3 changes" in text
    changes = (tmp_path / "out" / "changes.txt").read_text()
    for number in (2, 3, 4):
        assert f"labels/val/a.txt:{number}" in changes


def test_images_of_two_splits_stay_where_they_are_not_trained_on(tmp_path: Path) -> None:
    config = label_files.write_yolo(tmp_path / "data", splits=("train", "val", "test"))
    images = tmp_path / "data" / "images"
    recolour(images / "train", "a.png")
    recolour(images / "val", "b.png")
    text = fix(config.parent, tmp_path / "out")
    assert "4 changes" in text
    changes = (tmp_path / "out" / "changes.txt").read_text().splitlines()
    assert all("of another split" in line for line in changes)
    kept = {
        split: sorted(one["file_name"] for one in json.loads(file.read_text())["images"])
        for split in ("train", "val", "test")
        for file in (tmp_path / "out" / "annotations").glob(f"*{split}*.json")
    }
    assert {split: [Path(one).name for one in names] for split, names in kept.items()} == {
        "train": ["a.png"],
        "val": ["b.png"],
        "test": ["a.png", "b.png", "c.png"],
    }
    checked = check_dataset(splits_of(tmp_path / "out")[1]).splits
    assert not any("leaked_image" in one.report.problems for one in checked)
    same = label_files.write_yolo(tmp_path / "same", splits=("train", "val"))
    with pytest.raises(InputError, match="--split"):
        fix(same.parent, tmp_path / "none")
    assert not (tmp_path / "none").exists()
