"""Every kind of problem is found, counted and named; training drops what the table says that it drops."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.data.report import KINDS
from vovnet.detection.data.validation import check_data
from vovnet.errors import InputError

Write = Callable[..., DataSource]


@pytest.mark.parametrize("entry", [None, 5, [], "text"])
def test_annotations_that_are_no_objects(write: Write, entries: Any, entry: object) -> None:
    annotation, _ = entries
    source = write([annotation(1, 1), entry])
    assert check_data(source.images, source.annotations).problems == {"annotation_entry": ["#1"]}
    assert len(CocoDataset([source], masks=True, training=True)[0][1]["boxes"]) == 1


@pytest.mark.parametrize(
    ("kind", "fields", "named"),
    [
        ("missing_image", {"file_name": "none.png"}, 2),
        ("missing_image", {"file_name": "no/2.png"}, 2),
        ("path_outside", {"file_name": "../data/2.png"}, 2),
        ("path_outside", {"file_name": "/etc/passwd"}, 2),
        ("image_entry", {"file_name": None}, 2),
        ("image_entry", {"file_name": 3}, 2),
        ("image_entry", {"id": None}, "#1"),
        ("image_entry", {"id": [1]}, "#1"),
        ("image_entry", {"id": "2"}, "2"),
        ("image_entry", {"id": True}, "#1"),
        ("image_entry", {"id": 2**63}, 2**63),
        ("image_entry", {"file_name": 3, "coco_url": "http://x/data/2.png"}, 2),
        ("missing_image", {"file_name": None, "coco_url": "http://x/data/none.png"}, 2),
        ("path_outside", {"file_name": None, "coco_url": "http://x/%2e%2e/2.png"}, 2),
        ("duplicate_image_id", {"id": 1}, 1),
        ("duplicate_image_id", {"id": 1.0}, 1),
    ],
)
def test_bad_images_are_dropped(write: Write, entries: Any, kind: str, fields: dict[str, Any], named: object) -> None:
    _, image = entries
    source = write(images=[image(1), image(2, **fields), image(3)])
    report = check_data(source.images, source.annotations)
    assert report.problems[kind] == [named]
    assert report.dropped_images == 1
    dataset = CocoDataset([source], masks=True, training=True)
    assert [dataset.file_name(index) for index in range(len(dataset))] == ["1.png", "3.png"]
    assert KINDS[kind].text in dataset.dropped_summary
    # The annotation of the image that is lost is no problem of its own, unless its image is not listed at all.
    assert report.orphans + len(report.problems.get("unknown_image", [])) == 1
    with pytest.raises(InputError, match=KINDS[kind].text) as caught:
        CocoDataset([source], masks=True, training=False)
    assert "\n" not in str(caught.value)


def test_bad_images_are_left_out_when_they_are_met(write: Write, entries: Any) -> None:
    _, image = entries
    source = write(images=[image(1), image(2), image(3, width=59)])
    truncated = Path(source.images, "2.png")
    truncated.write_bytes(truncated.read_bytes()[:3000])
    report = check_data(source.images, source.annotations)
    assert report.problems == {"unreadable_image": [2], "size_differs": [3]}
    assert check_data(source.images, source.annotations, decode=False).ok
    dataset = CocoDataset([source], masks=True, training=True)
    with pytest.warns(RuntimeWarning, match=r"left out of training: .*2\.png"):
        assert dataset[1][1]["image_id"] == 1
    with pytest.warns(RuntimeWarning, match=r"59x40"):
        assert dataset[2][1]["image_id"] == 1
    evaluation = CocoDataset([source], masks=True, training=False)
    assert evaluation[0][1]["image_id"] == 1
    with pytest.raises(InputError, match=r"2\.png"):
        evaluation[1]
    with pytest.raises(InputError, match=r"60x40 .* 59x40"):
        evaluation[2]


def test_no_image_can_be_read(write: Write) -> None:
    source = write()
    for path in Path(source.images).iterdir():
        path.write_bytes(b"nothing")
    dataset = CocoDataset([source], masks=True, training=True)
    with pytest.warns(RuntimeWarning), pytest.raises(InputError, match="images in a row"):
        dataset[0]


def test_sizes_that_are_not_stated(write: Write, entries: Any) -> None:
    _, image = entries
    source = write(images=[image(1), image(2, width=None), image(3, height="40")])
    assert check_data(source.images, source.annotations).problems == {"no_size": [2, 3]}
    dataset = CocoDataset([source], masks=True, training=True)
    assert [dataset.image_size(index) for index in range(3)] == [(40, 60)] * 3
    Path(source.images, "2.png").write_bytes(b"nothing")
    assert check_data(source.images, source.annotations).problems["unreadable_image"] == [2]
    assert len(CocoDataset([source], masks=True, training=True)) == 2


def test_duplicate_annotation_ids_are_kept(write: Write, entries: Any) -> None:
    annotation, _ = entries
    source = write([annotation(5, 1), annotation(5, 2), annotation(0, 3)])
    report = check_data(source.images, source.annotations)
    assert report.problems == {"duplicate_annotation_id": [5]}
    truth = CocoDataset([source], masks=True, training=False).ground_truth
    assert truth is not None
    assert [entry["id"] for entry in truth["annotations"]] == [1, 2, 3]


def test_box_datasets_need_no_masks(write: Write, entries: Any) -> None:
    annotation, _ = entries
    source = write([annotation(n, n, segmentation=None) for n in (1, 2, 3)])
    report = check_data(source.images, source.annotations)
    assert report.ok
    assert report.masks == 0
    with pytest.raises(InputError, match="without masks"):
        CocoDataset([source], masks=True, training=True)
    evaluation = CocoDataset([source], masks=True, training=False)
    assert "masks" not in evaluation[0][1]
    assert evaluation.ground_truth is not None
    assert "segmentation" not in evaluation.ground_truth["annotations"][0]


def test_the_overview(write: Write, entries: Any) -> None:
    annotation, _ = entries
    crowd = {"size": [40, 60], "counts": [1200, 1200]}
    source = write(
        [annotation(1, 1), annotation(2, 1, category_id=90), annotation(3, 2, iscrowd=1, segmentation=crowd)]
    )
    report = check_data(source.images, source.annotations)
    assert report.ok
    assert (report.images, report.annotations, report.crowds, report.masks) == (3, 3, 1, 3)
    assert report.images_without_objects == 2
    assert report.objects_per_category == {"cat": 2, "dog": 1}
    assert "nothing is wrong" in report.table()
    assert report.summary() == ""


@pytest.mark.parametrize(
    ("orientation", "size", "kinds"),
    [
        (6, (60, 40), {"exif_stored"}),
        (6, (40, 60), set()),
        (6, (50, 40), {"size_differs"}),
        (3, (60, 40), set()),
        (1, (60, 40), set()),
    ],
)
def test_rotations(write: Write, entries: Any, orientation: int, size: tuple[int, int], kinds: set[str]) -> None:
    _, image = entries
    source = write(images=[image(1, width=size[0], height=size[1])])
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(Path(source.images, "1.png")) as opened:
        opened.save(Path(source.images, "1.png"), exif=exif)
    report = check_data(source.images, source.annotations)
    assert report.problems.keys() - {"unknown_image", "box_outside", "box_partly_outside"} == kinds
    if kinds == {"exif_stored"}:
        assert "1.png is 60x40 as stored" in report.table()
        assert CocoDataset([source], masks=False, training=True)[0][0].shape == (3, 40, 60)


def test_evaluation_says_what_it_leaves_out(write: Write, entries: Any) -> None:
    annotation, _ = entries
    clipped = write([annotation(1, 1), annotation(2, 2, bbox=[50, 10, 20, 20], segmentation=None)], name="clipped")
    assert CocoDataset([clipped], masks=True, training=False).dropped_summary == ""
    bad = write([annotation(1, 1), annotation(2, 2, iscrowd="maybe")], name="bad")
    assert KINDS["bad_iscrowd"].text in CocoDataset([bad], masks=True, training=False).dropped_summary


def test_names_that_stand_twice(write: Write, entries: Any) -> None:
    names = {7: "cat", 8: "dog", 9: "cat", 10: "Dog", 11: "hot dog", 12: "hotdog "}
    source = write(categories=[{"id": number, "name": name} for number, name in names.items()])
    report = check_data(source.images, source.annotations)
    assert report.problems == {"duplicate_name": [9]}
    assert "also category 7" in report.table()
    alike = [note for note in report.notes if "case or spaces" in note]
    assert [[number for number in names if str(number) in note.split()] for note in alike] == [[8, 10], [11, 12]]
    for sources in ([source], [source, source]):
        assert len(CocoDataset(sources, masks=False, training=True).categories) == 6


def test_narrow_images(write: Write, entries: Any) -> None:
    _, image = entries
    source = write(images=[image(1), image(2, file_name="1.png", width=12001, height=60), image(3)])
    assert check_data(source.images, source.annotations, decode=False).problems == {"narrow_image": [2]}


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"bbox": [1, 1, 0, 0]}, "no_objects"),
        ({"iscrowd": 1}, "no_objects"),
        ({"segmentation": [[1, 1]]}, "no_usable_mask"),
        ({"segmentation": None}, None),
    ],
)
def test_data_that_training_refuses(write: Write, entries: Any, fields: dict[str, Any], kind: str | None) -> None:
    annotation, _ = entries
    source = write([annotation(n, n, **fields) for n in (1, 2, 3)])
    report = check_data(source.images, source.annotations)
    assert set(report.problems) & {"no_objects", "no_usable_mask"} == ({kind} if kind else set())
    assert any("detector of masks" in note for note in report.notes) is (kind is None)
    with pytest.raises(InputError, match="empty dataset"):
        CocoDataset([source], masks=True, training=True)
    for training in (True, False):
        if kind == "no_objects":
            with pytest.raises(InputError, match="empty dataset"):
                CocoDataset([source], masks=False, training=training)
        else:
            assert len(CocoDataset([source], masks=False, training=training)) == 3
    if kind is None:
        assert "nothing is wrong" in report.table()


def test_a_missing_image_is_shown_as_the_path_that_was_looked_for(write: Write, entries: Any) -> None:
    _, image = entries
    source = write(images=[image(1), image(2, file_name="2.jpg"), image(3, file_name="images/3.png")])
    table = check_data(source.images, source.annotations).table()
    for name, near in (("2.jpg", "2.png"), ("images/3.png", "3.png")):
        assert f"{Path(source.images, name)} (did you mean '{near}'?)" in table
    assert str(Path(source.images, "2.jpg")) in CocoDataset([source], masks=False, training=True).dropped_summary
    with pytest.raises(InputError, match=r"data/2.jpg \(did you mean '2.png'\?\)"):
        CocoDataset([source], masks=False, training=False)


@pytest.mark.parametrize("folder", ["", "train2017"])
def test_images_of_lvis(write: Write, entries: Any, folder: str) -> None:
    _, image = entries
    url = "http://images.cocodataset.org/train2017/{}.png"
    source = write(images=[image(n, file_name=None, coco_url=url.format(n)) for n in (1, 2, 3)])
    root = Path(source.images)
    if folder:
        (root / folder).mkdir()
        for path in root.glob("*.png"):
            path.rename(root / folder / path.name)
    assert check_data(source.images, source.annotations).ok
    for training in (True, False):
        dataset = CocoDataset([source], masks=True, training=training)
        assert [dataset.file_name(n) for n in range(3)] == [str(Path(folder, f"{n}.png")) for n in (1, 2, 3)]
        assert dataset[2][0].shape == (3, 40, 60)


def test_many_ids_are_cut(write: Write, entries: Any) -> None:
    annotation, _ = entries
    source = write([annotation(n, 1 if n == 1 else 99) for n in range(1, 30)])
    table = check_data(source.images, source.annotations).table(examples=2)
    assert "annotation 2, 3 and 26 more" in table


@pytest.mark.parametrize("name", ["train", "val"])
def test_real_data_is_sound(shared: Path, name: str) -> None:
    data = shared / "data" / "coco_tiny_cc"
    report = check_data(data / f"{name}2017", data / "annotations" / f"instances_{name}2017.json")
    assert report.ok, report.table()
    assert report.crowds > 0
    bccd = shared / "data" / "bccd"
    assert check_data(bccd / "images", bccd / "annotations" / f"instances_{name}.json", decode=False).ok


def test_a_missing_folder(write: Write) -> None:
    source = write()
    with pytest.raises(InputError, match="no such folder"):
        check_data(source.images + "x", source.annotations)
