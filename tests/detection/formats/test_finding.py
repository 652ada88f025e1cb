"""Folders of the usual exports are recognised, with their splits; the same images are held out each time."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import label_files
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from label_files import SIZES, THINGS

from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.data.sources import read_source
from vovnet.detection.data.validation import check_source
from vovnet.detection.formats.finding import FoundSources, sources_of
from vovnet.errors import InputError


def names(sources: list[DataSource]) -> list[str]:
    return sorted(one["file_name"] for source in sources for file in read_source(source) for one in file.content.images)


def usable(found: FoundSources) -> tuple[int, int]:
    """The number of images for training and for validation, read as a training does."""
    sizes = []
    for sources, training in ((found.train, True), (found.val, False)):
        sizes.append(len(CocoDataset(sources, masks=False, training=training)))
    return sizes[0], sizes[1]


def write_coco(path: Path, images: list[str] | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(label_files.coco_content(images or list(SIZES))))


def test_microsofts_layout(tmp_path: Path) -> None:
    for split in ("train2017", "val2017"):
        label_files.write_images(tmp_path / split)
        write_coco(tmp_path / "annotations" / f"instances_{split}.json")
        write_coco(tmp_path / "annotations" / f"person_keypoints_{split}.json")
        (tmp_path / "annotations" / f"captions_{split}.json").write_text('{"images": [], "annotations": []}')
    found = sources_of(tmp_path)
    assert found.format == "coco"
    annotations, images = tmp_path / "annotations" / "instances_train2017.json", tmp_path / "train2017"
    assert found.train == [DataSource(images=str(images), annotations=str(annotations))]
    assert found.val[0].annotations.endswith("instances_val2017.json")
    assert usable(found) == (3, 3)
    assert "COCO" in found.line
    assert "\n" not in found.line


def test_roboflows_layouts(tmp_path: Path) -> None:
    for split in ("train", "valid", "test"):
        label_files.write_images(tmp_path / "coco" / split)
        write_coco(tmp_path / "coco" / split / "_annotations.coco.json")
        label_files.write_images(tmp_path / "voc" / split)
        label_files.write_images(tmp_path / "yolo" / split / "images")
        (tmp_path / "yolo" / split / "labels").mkdir()
        for name, things in THINGS.items():
            xml = label_files.voc_xml(name, things)
            (tmp_path / "voc" / split / name).with_suffix(".xml").write_text(xml)
            lines = "\n".join(label_files.yolo_line(one, SIZES[name]) for one in things)
            (tmp_path / "yolo" / split / "labels" / name).with_suffix(".txt").write_text(lines)
    (tmp_path / "yolo" / "data.yaml").write_text(
        "train: ../train/images\nval: ../valid/images\ntest: ../test/images\n"
        f"nc: 3\nnames: {json.dumps(label_files.NAMES)}\nroboflow:\n  license: MIT\n"
    )
    (tmp_path / "yolo" / "README.roboflow.txt").write_text("cells\n")
    for format_name in ("coco", "voc", "yolo"):
        found = sources_of(tmp_path / format_name)
        assert found.format == format_name
        assert usable(found) == (3, 3)
        assert {"coco": "valid", "voc": "valid", "yolo": "val"}[format_name] in str(found.val)


def test_an_unpacked_archive_and_links_that_lead_back(tmp_path: Path) -> None:
    label_files.write_yolo(tmp_path / "archive" / "cells", splits=("train", "val"))
    (tmp_path / "archive" / "cells" / "images" / "again").symlink_to(tmp_path / "archive" / "cells")
    assert usable(sources_of(tmp_path / "archive")) == (3, 3)


def test_a_fifth_is_held_out_and_is_the_same_each_time(tmp_path: Path) -> None:
    folder = label_files.write_labelme(tmp_path / "data")
    for number in range(10):
        shutil.copy(folder / "a.png", folder / f"{number}.png")
        content = label_files.labelme_json("a.png", THINGS["a.png"])
        (folder / f"{number}.json").write_text(json.dumps(content | {"imagePath": f"{number}.png"}))
    found = sources_of(folder)
    train, val = names(found.train), names(found.val)
    assert (len(train), len(val)) == (10, 3)
    assert not set(train) & set(val)
    assert "20%" in found.line
    assert names(sources_of(folder).val) == val
    whole = sources_of(folder, hold_out=False)
    assert (len(names(whole.train)), whole.val) == (13, [])


def test_parts_of_a_coco_file_add_up(tmp_path: Path) -> None:
    label_files.write_images(tmp_path)
    write_coco(tmp_path / "labels.json")
    found = sources_of(tmp_path / "labels.json")
    assert sorted(names(found.train) + names(found.val)) == sorted(SIZES)
    parts = [read_source(source)[0].content for source in (*found.train, *found.val)]
    assert sum(len(one.annotations) for one in parts) == 3
    for one in parts:
        assert {entry["image_id"] for entry in one.annotations} <= {image["id"] for image in one.images}


def test_data_without_training_or_with_nothing_is_one_line(tmp_path: Path) -> None:
    label_files.write_images(tmp_path / "val2017")
    write_coco(tmp_path / "annotations" / "instances_val2017.json")
    with pytest.raises(InputError, match="no split 'train'"):
        sources_of(tmp_path)
    with pytest.raises(InputError, match="no such"):
        sources_of(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty"):
        sources_of(tmp_path / "empty")
    with pytest.raises(InputError, match=r"a\.png"):
        sources_of(tmp_path / "val2017")


def test_classes_of_joined_sources_are_matched_by_name(tmp_path: Path) -> None:
    """YOLO counts from 0 and VOC has no numbers: the same names are the same classes, and COCO's ids stay."""
    label_files.write_images(tmp_path / "coco")
    write_coco(tmp_path / "coco.json")
    coco = DataSource(images=str(tmp_path / "coco"), annotations=str(tmp_path / "coco.json"))
    yolo = DataSource(yolo=str(label_files.write_yolo(tmp_path / "yolo")), split="train")
    (tmp_path / "voc").mkdir()
    voc = DataSource(voc=str(label_files.write_voc(tmp_path / "voc")))
    dataset = CocoDataset([coco, yolo, voc], masks=False, training=True)
    assert [(one["id"], one["name"]) for one in dataset.categories] == [(1, "cat"), (2, "dog"), (3, "red cell")]
    labels = [dataset[index][1]["labels"].tolist() for index in range(len(dataset))]
    assert labels == [[2, 3], [1], []] * 3
    detector = [{"id": 9, "name": "red cell"}, {"id": 4, "name": "cat"}, {"id": 5, "name": "dog"}]
    evaluated = CocoDataset([yolo], masks=False, training=False, categories=detector)
    assert evaluated[0][1]["labels"].tolist() == [3, 1]
    config = Path(yolo.yolo)
    config.write_text(config.read_text().replace('"red cell"', '"white cell"'))
    more = CocoDataset([coco, yolo], masks=False, training=True)
    assert [(one["id"], one["name"]) for one in more.categories][3:] == [(4, "white cell")]
    # Class 3 of YOLO's file is none, also where the id 3 is another file's.
    (tmp_path / "yolo" / "labels" / "train" / "a.txt").write_text("3 0.5 0.5 0.1 0.1\n1 0.5 0.5 0.1 0.1\n")
    faulty = CocoDataset([coco, yolo], masks=False, training=True)
    assert len(faulty.dropped.problems["unknown_category"]) == 1


def test_an_evaluation_needs_every_file_of_labels(tmp_path: Path) -> None:
    config = label_files.write_yolo(tmp_path)
    (tmp_path / "labels" / "train" / "a.txt").write_bytes(b"\xff\xfe\x00")
    sources = [DataSource(yolo=str(config), split="train")]
    assert len(CocoDataset(sources, masks=False, training=True)) == 2
    with pytest.raises(InputError, match="file of labels"):
        CocoDataset(sources, masks=False, training=False)


def test_nobody_evaluates_on_training_data_unawares(tmp_path: Path) -> None:
    config = label_files.write_yolo(tmp_path / "yolo", splits=("train", "test"))
    (tmp_path / "voc").mkdir()
    label_files.write_voc(tmp_path / "voc", {"train": ["a.png"], "trainval": ["a.png", "b.png"]})
    folder = DataSource(folder=str(tmp_path / "yolo"))
    for source in (DataSource(yolo=str(config)), folder):
        assert read_source(source, "val")[0].name.endswith("(test)")
        assert len(read_source(source)[0].content.images) in (3, 6)
    with pytest.raises(InputError, match="trainval"):
        read_source(DataSource(voc=str(tmp_path / "voc")), "val")
    assert len(read_source(DataSource(voc=str(tmp_path / "voc"), split="trainval"), "val")[0].content.images) == 2


@pytest.mark.parametrize("writer", ["write_yolo", "write_voc", "write_labelme", "write_via", "write_cvat"])
@given(data=st.data())
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damaged_labels_never_end_in_a_traceback(writer: str, tmp_path: Path, data: st.DataObject) -> None:
    """A file of labels with some bytes replaced is read, reported as rows, or refused in one line."""
    folder = tmp_path / "data"
    if not folder.exists():
        folder.mkdir()
        getattr(label_files, writer)(folder)
    files = [path for path in sorted(folder.rglob("*")) if path.suffix in (".yaml", ".txt", ".xml", ".json")]
    file = data.draw(st.sampled_from(files))
    sound = file.read_bytes()
    start = data.draw(st.integers(0, len(sound)))
    new = data.draw(st.one_of(st.binary(max_size=8), st.sampled_from([b"null", b"-1", b"1e999", b"{", b"<", b"\n"])))
    said = ""
    try:
        file.write_bytes(sound[:start] + new + sound[start + data.draw(st.integers(0, 12)) :])
        check_source(DataSource(folder=str(folder)), decode=False)
    except InputError as error:
        said = str(error)
    finally:
        file.write_bytes(sound)
    assert "\n" not in said
