"""Every format of the same dataset gives the same boxes, masks and classes; every fault is a row or one line."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import label_files
import numpy as np
import pytest
from label_files import SIZES, THINGS
from PIL import Image

from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.masks import decode_masks, mask_area
from vovnet.detection.data.report import DataReport
from vovnet.detection.data.sources import read_source
from vovnet.detection.data.validation import check_content, check_file, check_source
from vovnet.errors import InputError

WRITERS: dict[str, Callable[[Path], Path]] = {
    "yolo": label_files.write_yolo,
    "voc": label_files.write_voc,
    "labelme": label_files.write_labelme,
    "via project": label_files.write_via,
    "via annotations": lambda folder: label_files.write_via(folder, project=False),
    "via csv": label_files.write_via_csv,
    "cvat": label_files.write_cvat,
    "label studio": label_files.write_label_studio,
    "label studio min": lambda folder: label_files.write_label_studio(folder, small=True),
}


def report_of(source: DataSource) -> DataReport:
    (report,) = check_source(source)
    return report


def kinds(report: DataReport) -> dict[str, int]:
    """How often each problem was found; boxes beside polygons have no mask, which is none here."""
    beside = ("no_mask", "no_usable_mask")
    return {kind: len(ids) for kind, ids in report.problems.items() if kind not in beside}


@pytest.mark.parametrize("format", WRITERS)
def test_every_format_gives_the_same_objects(format: str, tmp_path: Path) -> None:
    path = WRITERS[format](tmp_path)
    (file,) = read_source(DataSource(folder=str(path)))
    report, _ = check_file(file)
    assert kinds(report) == {}, report.table()
    images = check_content(file.content, file.folder, False, DataReport())
    names = {one["id"]: one["name"] for one in file.content.categories}
    assert set(names.values()) == set(label_files.NAMES)
    found = {Path(image.file_name).name.removeprefix("1a2b3c4d-"): image for image in images}
    assert found.keys() == SIZES.keys()
    for name, things in THINGS.items():
        image = found[name]
        assert (image.width, image.height) == SIZES[name]
        assert [names[one.category_id] for one in image.objects] == [thing.name for thing in things]
        for one, thing in zip(image.objects, things, strict=True):
            assert one.box == pytest.approx(thing.box, abs=1e-4)
    (checked,) = [one for one in file.content.annotations if one.get("segmentation")]
    width, height = SIZES["a.png"]
    truth = decode_masks([[list(label_files.TRIANGLE)]], height, width)
    assert decode_masks([checked["segmentation"]], height, width).ne(truth).sum() <= 1


# What a line of YOLO's labels says, and the rows that it makes; the image has one more, sound line.
YOLO_LINES = [
    ("3 0.5 0.5 0.2 0.2", {"unknown_category": 1}),
    ("-1 0.5 0.5 0.2 0.2", {"unknown_category": 1}),
    ("1.5 0.5 0.5 0.2 0.2", {"bad_line": 1}),
    ("cat 0.5 0.5 0.2 0.2", {"bad_line": 1}),
    ("0 0.5 0.5 0.2", {"bad_line": 1}),
    ("0 0.5 0.5 0.2 0.2 0.9", {"bad_line": 1}),
    ("0 0.5 0.5 0.2 0.2 0.9 0.1 0.3", {"bad_line": 1}),
    ("0 nan 0.5 0.2 0.2", {"bad_line": 1}),
    ("0 0.5 inf 0.2 0.2", {"bad_line": 1}),
    ("0 0,5 0,5 0,2 0,2", {"bad_line": 1}),
    ("0 30 20 12 8", {"pixel_box": 1}),
    ("0 0.5 0.5 0 0.2", {"empty_box": 1}),
    ("0 0.5 0.5 -0.2 0.2", {"empty_box": 1}),
    ("0 1.5 0.5 0.2 0.2", {"box_outside": 1}),
    ("0 0.9 0.5 0.4 0.2", {"box_partly_outside": 1}),
    ("0 0.5 0.5 0.5 0.5 0.5 0.5", {"empty_box": 1}),
    ("0 0.1 0.1 0.9 0.1 0.5 0.9", {}),
    ("", {}),
]


@pytest.mark.parametrize(("line", "expected"), YOLO_LINES)
def test_a_bad_line_of_yolo_is_one_row(line: str, expected: dict[str, int], tmp_path: Path) -> None:
    config = label_files.write_yolo(tmp_path)
    (tmp_path / "labels" / "train" / "a.txt").write_text("1 0.5 0.5 0.25 0.5\r\n" + line + "\r\n")
    report = report_of(DataSource(yolo=str(config), split="train"))
    assert kinds(report) == expected
    if expected:
        assert "labels/train/a.txt:2" in report.table()


def test_missing_and_empty_files_of_yolo(tmp_path: Path) -> None:
    config = label_files.write_yolo(tmp_path)
    labels = tmp_path / "labels" / "train"
    (labels / "a.txt").write_text("")
    (labels / "lost.txt").write_text("0 0.5 0.5 0.1 0.1\n")
    (labels / "classes.txt").write_text("cat\n")
    report = report_of(DataSource(yolo=str(config)))
    assert report.problems == {"missing_image": ["labels/train/lost.txt"]}
    assert (report.images, report.images_without_objects) == (4, 2)
    assert any("1 images have no file of labels" in note for note in report.notes)
    (tmp_path / "images" / "train" / "b.png").write_bytes(b"no image")
    assert "unreadable_image" in report_of(DataSource(yolo=str(config))).problems


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_yolo_in_the_encodings_of_windows(encoding: str, tmp_path: Path) -> None:
    config = label_files.write_yolo(tmp_path)
    text = (tmp_path / "labels" / "train" / "a.txt").read_text()
    (tmp_path / "labels" / "train" / "a.txt").write_text(text, encoding=encoding)
    config.write_text(config.read_text().replace("cat", "Kätzchen"), encoding=encoding)
    (file,) = read_source(DataSource(yolo=str(config)))
    assert file.content.categories[0]["name"] == "Kätzchen"
    assert [one["category_id"] for one in file.content.annotations] == [1, 2, 0]


def test_a_file_of_labels_in_another_encoding_is_a_row(tmp_path: Path) -> None:
    config = label_files.write_yolo(tmp_path)
    (tmp_path / "labels" / "train" / "a.txt").write_bytes("0 0.5 0.5 0.1 0.1 ä".encode("latin-1"))
    report = report_of(DataSource(yolo=str(config)))
    assert report.problems == {"label_file": ["labels/train/a.txt"]}, report.table()
    assert report.dropped_images == 1


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "empty"),
        ("[1, 2]", "names"),
        ("names: [cat\n", "YAML"),
        ("train: images/train\nnames: {a: cat}", "names"),
        ("train: images/train\nnames: [cat, dog]\nnc: 3", "nc"),
        ("train: images/none\nnames: [cat]", "images/none"),
        ("train: ../../etc\nnames: [cat]", "leaves"),
        ("train: /etc\nnames: [cat]", "leaves"),
        ("train: C:\\data\\x\nnames: [cat]", "leaves"),
        ("train: 5\nnames: [cat]", "train"),
        ("train: images/train\nnames: [cat, dog, red cell]\ntask: obb", "oriented"),
        ("train: images/train\nnames: [cat, dog, red cell]\nkpt_shape: [x, 3]", "kpt_shape"),
        ("names: !!python/object/apply:os.getcwd []", "YAML"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nnames: *b", "names"),
    ],
)
def test_a_bad_data_yaml_is_one_line(text: str, named: str, tmp_path: Path) -> None:
    config = label_files.write_yolo(tmp_path)
    config.write_text(text)
    with pytest.raises(InputError, match=named) as error:
        report_of(DataSource(yolo=str(config), split="train"))
    assert "\n" not in str(error.value)


def test_paths_that_exporters_write_are_found_inside_the_folder_alone(tmp_path: Path) -> None:
    """Roboflow writes ``../train/images``, and others the path of their own machine."""
    names = f"names: {json.dumps(label_files.NAMES)}\n"
    config = label_files.write_yolo(tmp_path / "cells")
    for train in ("../images/train", "/content/cells/images/train", "./images/train/", "images\\train"):
        config.write_text(f"path: /content/elsewhere\ntrain: {train}\n{names}")
        assert report_of(DataSource(yolo=str(config))).annotations == 3
    label_files.write_yolo(tmp_path / "other")
    config.write_text(f"path: ../other\ntrain: images/none\n{names}")
    with pytest.raises(InputError, match="images/none"):
        report_of(DataSource(yolo=str(config)))
    config.write_text(f"train: images/train\n{names}")
    moved = (tmp_path / "moved.yaml").write_bytes(config.read_bytes())
    assert moved
    assert report_of(DataSource(yolo=str(tmp_path / "moved.yaml"), images=str(tmp_path / "cells"))).annotations == 3


def test_names_in_a_list_of_images_never_leave_the_folder(tmp_path: Path) -> None:
    config = label_files.write_yolo(tmp_path)
    lines = ["./images/train/a.png", "../secret.png", "/etc/passwd.png", "images/train/none.png", ""]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    config.write_text(f"train: train.txt\nnames: {json.dumps(label_files.NAMES)}\n")
    report = report_of(DataSource(yolo=str(config)))
    assert kinds(report) == {"path_outside": 2, "missing_image": 1}
    assert report.annotations == 2


def test_oriented_boxes_are_refused_unless_the_file_says_polygons(tmp_path: Path) -> None:
    config = label_files.write_yolo(tmp_path)
    turned = "0 0.5 0.25 0.75 0.5 0.5 0.75 0.25 0.5\n"
    for name in ("a", "b"):
        (tmp_path / "labels" / "train" / f"{name}.txt").write_text(turned)
    Image.new("RGB", (60, 60)).save(tmp_path / "images" / "train" / "a.png")
    Image.new("RGB", (80, 80)).save(tmp_path / "images" / "train" / "b.png")
    with pytest.raises(InputError, match="oriented"):
        report_of(DataSource(yolo=str(config)))
    config.write_text(config.read_text() + "task: segment\n")
    report = report_of(DataSource(yolo=str(config)))
    assert report.ok
    assert report.masks == 2


def test_keypoints_of_yolo_and_their_mirror(tmp_path: Path) -> None:
    from vovnet.detection.config.categories import mirror_order

    config = label_files.write_yolo(tmp_path)
    config.write_text("train: images/train\nnames: [man]\nkpt_shape: [3, 3]\nflip_idx: [0, 2, 1]\n")
    labels = tmp_path / "labels" / "train"
    (labels / "a.txt").write_text("0 0.5 0.5 0.5 0.5 0.5 0.25 2 0.25 0.5 1 0 0 0\n")
    (labels / "b.txt").write_text("0 0.5 0.5 0.5 0.5 0.5 0.25 2 0.25 0.5 1\n")
    (file,) = read_source(DataSource(yolo=str(config)))
    assert mirror_order(file.content.categories, "yolo") == (0, 2, 1)
    assert file.content.annotations[0]["keypoints"] == [30, 10, 2, 15, 20, 1, 0, 0, 0]
    assert [one.kind for one in file.content.problems] == ["bad_line"]


def test_darknet_and_bare_folders_are_yolo(tmp_path: Path) -> None:
    label_files.write_images(tmp_path / "cvat" / "obj_train_data")
    (tmp_path / "cvat" / "obj_train_data" / "b.txt").write_text("1 0.5 0.5 0.5 0.5\n")
    (tmp_path / "cvat" / "obj.names").write_text("cat\ndog\n")
    (tmp_path / "cvat" / "train.txt").write_text("data/obj_train_data/a.png\ndata/obj_train_data/b.png\n")
    (tmp_path / "cvat" / "obj.data").write_text("classes = 2\ntrain = data/train.txt\nnames = data/obj.names\n")
    assert report_of(DataSource(folder=str(tmp_path / "cvat"))).objects_per_category == {"cat": 0, "dog": 1}
    label_files.write_images(tmp_path / "bare" / "images")
    (tmp_path / "bare" / "labels").mkdir()
    (tmp_path / "bare" / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    with pytest.raises(InputError, match=r"classes\.txt"):
        report_of(DataSource(folder=str(tmp_path / "bare")))
    (tmp_path / "bare" / "classes.txt").write_text("cat\n")
    assert report_of(DataSource(folder=str(tmp_path / "bare"))).objects_per_category == {"cat": 1}


def test_voc_lists_and_corners(tmp_path: Path) -> None:
    folder = label_files.write_voc(tmp_path, {"train": ["a.png", "c.png"], "val": ["b.png"], "cat_train": ["b.png"]})
    (train,), (val,) = (read_source(DataSource(voc=str(folder), split=split)) for split in ("train", "val"))
    assert (len(train.content.images), len(val.content.images)) == (2, 1)
    assert train.content.categories == val.content.categories
    assert len(read_source(DataSource(voc=str(folder)), "train")[0].content.images) == 2
    assert len(read_source(DataSource(voc=str(folder)))[0].content.images) == 3
    with pytest.raises(InputError, match="holdout"):
        read_source(DataSource(voc=str(folder), split="holdout"))
    # Pixels are counted from 1 in VOC's own files alone.
    own = label_files.voc_xml("a.png", [label_files.Thing("dog", (1, 1, 59, 39))], database="The VOC2007 Database")
    (folder / "Annotations" / "a.xml").write_text(own)
    (train,) = read_source(DataSource(voc=str(folder), split="train"))
    assert train.content.annotations[0]["bbox"] == [0, 0, 60, 40]


def voc_with(tmp_path: Path, text: str | bytes) -> DataReport:
    folder = label_files.write_voc(tmp_path)
    file = folder / "Annotations" / "a.xml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return report_of(DataSource(voc=str(folder)))


SOUND = label_files.voc_xml("a.png", [label_files.Thing("dog", (6, 8, 30, 20))])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "label_file"),
        ("<annotation>", "label_file"),
        ("not xml", "label_file"),
        ("<other/>", "label_file"),
        ('<!DOCTYPE a [<!ENTITY b "c">]><annotation>&b;</annotation>', "label_file"),
        (SOUND.encode("utf-8").replace(b"dog", b"d\xf6g"), "label_file"),
        (SOUND.replace("<filename>a.png", "<filename>../a.png").replace("a.png", "none.png"), None),
        (SOUND.replace("<xmin>6", "<xmin>six"), "bad_box"),
        (SOUND.replace("<xmin>6", "<xmin>nan"), "bad_box"),
        (SOUND.replace("<xmin>6", "<xmin>37"), "empty_box"),
        (SOUND.replace("<xmax>36", "<xmax>66"), "box_partly_outside"),
        (SOUND.replace("<name>dog</name>", "<name> </name>"), "unknown_category"),
        (SOUND.replace("<width>60", "<width>0"), "no_size"),
        (SOUND.replace("<width>60", "<width>61"), "size_differs"),
        ('<?xml version="1.0" encoding="latin-1"?>' + SOUND, None),
        (('<?xml version="1.0" encoding="utf-16"?>' + SOUND).encode("utf-16"), None),
    ],
)
def test_bad_files_of_voc_are_rows(text: str | bytes, expected: str | None, tmp_path: Path) -> None:
    report = voc_with(tmp_path, text)
    assert list(kinds(report)) == ([] if expected is None else [expected])


def test_images_that_voc_does_not_have(tmp_path: Path) -> None:
    folder = label_files.write_voc(tmp_path)
    (folder / "JPEGImages" / "a.png").unlink()
    (folder / "JPEGImages" / "b.png").unlink()
    outside = label_files.voc_xml("b.png", THINGS["b.png"], filename="/etc/passwd.png")
    (folder / "Annotations" / "b.xml").write_text(outside)
    report = report_of(DataSource(voc=str(folder)))
    assert {kind: len(ids) for kind, ids in report.problems.items()} == {
        "path_outside": 1,
        "missing_image": 1,
        "no_objects": 1,
    }


def test_difficult_objects_are_crowds(tmp_path: Path) -> None:
    assert voc_with(tmp_path, SOUND.replace("<difficult>0", "<difficult>1")).crowds == 1


def labelme_with(tmp_path: Path, change: Callable[[dict[str, Any]], object]) -> DataReport:
    folder = label_files.write_labelme(tmp_path)
    content = label_files.labelme_json("a.png", [label_files.Thing("dog", (6, 8, 30, 20))])
    change(content)
    (folder / "a.json").write_text(json.dumps(content))
    return report_of(DataSource(folder=str(folder)))


def changed(**fields: Any) -> Callable[[dict[str, Any]], object]:
    return lambda content: content["shapes"][0].update(fields)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (changed(shape_type="line"), "bad_shape"),
        (changed(shape_type="point", points=[[1, 2]]), "bad_shape"),
        (changed(points=[[1, "2"], [3, 4]]), "bad_shape"),
        (changed(points=None), "bad_shape"),
        (changed(shape_type="mask", mask="no base64"), "bad_shape"),
        (changed(label=None), "unknown_category"),
        (changed(points=[[6, 8], [6, 28]]), "empty_box"),
        (lambda content: content.update(shapes=None), "label_file"),
        (lambda content: content.update(shapes=[5]), "bad_shape"),
        (lambda content: content.update(imagePath="none.png"), "missing_image"),
        (lambda content: content.update(imagePath="../../none.png"), "path_outside"),
        (lambda content: content.update(imagePath="..\\images\\a.png"), None),
        (lambda content: content.update(imageWidth="60"), None),
        (lambda content: content.update(imageWidth=61), "size_differs"),
    ],
)
def test_bad_files_of_labelme_are_rows(
    change: Callable[[dict[str, Any]], object], expected: str | None, tmp_path: Path
) -> None:
    assert list(kinds(labelme_with(tmp_path, change))) == ([] if expected is None else [expected])


def test_shapes_of_labelme(tmp_path: Path) -> None:
    mask = np.zeros((12, 10), dtype=np.uint8)
    mask[2:8, 1:6] = 255
    file = io.BytesIO()
    Image.fromarray(mask).save(file, "PNG")

    def change(content: dict[str, Any]) -> None:
        square = [[10, 10], [20, 10], [20, 20], [10, 20]]
        content["shapes"] = [
            {"label": "dog", "shape_type": "circle", "points": [[30, 20], [40, 20]]},
            {
                "label": "dog",
                "shape_type": "mask",
                "points": [[5, 6], [14, 17]],
                "mask": base64.b64encode(file.getvalue()).decode(),
            },
            {"label": "cat", "shape_type": "polygon", "points": square, "group_id": 7},
            {"label": "cat", "shape_type": "polygon", "points": [[x + 20, y] for x, y in square], "group_id": 7},
        ]

    labelme_with(tmp_path, change)
    (source,) = read_source(DataSource(folder=str(tmp_path)))
    circle, masked, both = [one for one in source.content.annotations if one["image_id"] == 1]
    assert circle["bbox"] == [20, 10, 20, 20]
    assert mask_area(circle["segmentation"], 40, 60) == pytest.approx(math.pi * 100, rel=0.03)
    assert masked["bbox"] == [6, 8, 5, 6]
    expected = np.zeros((40, 60), dtype=np.uint8)
    expected[8:14, 6:11] = 1
    assert (decode_masks([masked["segmentation"]], 40, 60)[0].numpy() == expected).all()
    assert both["bbox"] == [10, 10, 30, 10]
    assert len(both["segmentation"]) == 2


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"rect"', '"point"', "bad_shape"),
        ('"x": 6', '"x": "six"', "bad_box"),
        ('"width": 30', '"width": 0', "empty_box"),
        ('{"class": "dog"}', "{}", "unknown_category"),
        ('{"class": "dog"}', '{"class": {"dog": true, "cat": true}}', "unknown_category"),
        ('{"class": "dog"}', '{"class": {"dog": true, "cat": false}}', None),
        ('"filename": "a.png"', '"filename": "none.png"', "missing_image"),
        ('"filename": "a.png"', '"filename": "../none.png"', "path_outside"),
        ('"filename": "a.png"', '"filename": "/home/me/a.png"', None),
    ],
)
def test_bad_entries_of_via_are_rows(old: str, new: str, expected: str | None, tmp_path: Path) -> None:
    path = label_files.write_via(tmp_path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert list(kinds(report_of(DataSource(folder=str(path))))) == ([] if expected is None else [expected])


def test_a_class_of_via_that_cannot_be_told_is_one_line(tmp_path: Path) -> None:
    path = label_files.write_via(tmp_path)
    path.write_text(path.read_text().replace('{"class": ', '{"colour": "red", "kind of thing": '))
    with pytest.raises(InputError, match="kind of thing"):
        report_of(DataSource(folder=str(path)))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("<box ", '<box rotation="30" ', "bad_shape"),
        ("<box ", "<polyline ", "bad_shape"),
        ('xtl="6"', 'xtl="six"', "bad_box"),
        ('points="4.0,', 'points="four,', "bad_box"),
        ('name="a.png"', 'name="../none.png"', "path_outside"),
        ('name="a.png"', 'name="none.png"', "missing_image"),
        ('label="dog"', 'label=""', "unknown_category"),
        ("<box ", "<mask ", "bad_box"),
        ("<box ", '<mask left="0" top="0" width="2" height="2" rle="1, 2" ', "bad_shape"),
        ("<box ", '<mask left="0" top="0" width="2" height="2" rle="one" ', "bad_shape"),
        ("<box ", '<mask left="0" top="0" width="2" height="2" rle="4" ', "bad_shape"),
    ],
)
def test_bad_entries_of_cvat_are_rows(old: str, new: str, expected: str, tmp_path: Path) -> None:
    path = label_files.write_cvat(tmp_path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert list(kinds(report_of(DataSource(folder=str(path))))) == [expected]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('"rotation": 0', '"rotation": 15', "bad_shape"),
        ('"original_width": 60', '"original_width": null', "bad_shape"),
        ('"rectanglelabels": ["dog"]', '"rectanglelabels": []', "unknown_category"),
        ('"x": 10.0', '"x": null', "bad_box"),
        ('"rectanglelabels"', '"brushlabels"', "bad_shape"),
        ('"rectanglelabels"', '"keypointlabels"', "bad_shape"),
        ("1a2b3c4d-a.png", "none.png", "missing_image"),
    ],
)
def test_bad_entries_of_label_studio_are_rows(old: str, new: str, expected: str, tmp_path: Path) -> None:
    path = label_files.write_label_studio(tmp_path)
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    assert list(kinds(report_of(DataSource(folder=str(path))))) == [expected]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("via.json", '{"a": {"filename": "a.png"}}'),
        ("export.json", "[]"),
        ("export.json", "["),
        ("annotations.xml", "<annotations><track/></annotations>"),
        ("annotations.xml", "<annotations>"),
        ("via.csv", "a,b\n1,2\n"),
        ("via.csv", ""),
        ("data.yaml", ""),
        ("notes.md", "# nothing"),
    ],
)
def test_files_that_are_no_labels_are_one_line(name: str, text: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(InputError) as error:
            read_source(DataSource(folder=str(path)))
        assert "\n" not in str(error.value)
        assert str(tmp_path) in str(error.value)


def write_voc_masks(folder: Path, border: int = 255) -> np.ndarray:
    """Write VOC's layout and the masks of one image: each object's box without its first row, and a border."""
    label_files.write_voc(folder)
    (folder / "SegmentationObject").mkdir()
    values = np.zeros(SIZES["a.png"][::-1], dtype=np.uint8)
    for number, one in enumerate(THINGS["a.png"], start=1):
        x, y, w, h = map(round, one.box)
        values[y : y + h, x : x + w] = number
        values[y, x : x + w] = border
    image = Image.fromarray(values)
    image.putpalette([value for number in range(256) for value in (number * 37 % 256, number * 91 % 256, number)])
    image.save(folder / "SegmentationObject" / "a.png")
    return values


def test_vocs_masks_are_those_of_segmentation_object(tmp_path: Path) -> None:
    values = write_voc_masks(tmp_path)
    with Image.open(tmp_path / "SegmentationObject" / "a.png") as image:
        assert image.mode == "P"
    (file,) = read_source(DataSource(folder=str(tmp_path)))
    of_a = next(one["id"] for one in file.content.images if one["file_name"].endswith("a.png"))
    objects = [one for one in file.content.annotations if one["image_id"] == of_a]
    assert len(objects) == len(THINGS["a.png"])
    for number, one in enumerate(objects, start=1):
        assert (decode_masks([one["segmentation"]], *values.shape)[0].numpy() == (values == number)).all()
    assert all("segmentation" not in one for one in file.content.annotations if one["image_id"] != of_a)


@pytest.mark.parametrize("fault", ["size", "count", "mode", "bytes"])
def test_vocs_masks_that_cannot_be_used_are_a_problem(fault: str, tmp_path: Path) -> None:
    values = write_voc_masks(tmp_path, border=9 if fault == "count" else 255)
    path = tmp_path / "SegmentationObject" / "a.png"
    if fault == "size":
        Image.new("P", (7, 5)).save(path)
    if fault == "mode":
        Image.fromarray(values).convert("RGB").save(path)
    if fault == "bytes":
        path.write_bytes(path.read_bytes()[:60])
    report = report_of(DataSource(folder=str(tmp_path)))
    assert kinds(report) == {"bad_shape": 1}
    assert "SegmentationObject/a.png" in report.table()
    assert report.images == 3
