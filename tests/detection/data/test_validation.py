"""Every kind of problem is found, counted and named; training drops what the table says that it drops."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vovnet.detection.config.schema import DataSource
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.data.report import KINDS
from vovnet.detection.data.validation import box_problem, check_data, read_annotations
from vovnet.errors import InputError

Write = Callable[..., DataSource]
NAN, INFINITE = float("nan"), float("inf")

# Kind, what makes a sound annotation bad, whether a box detector trains on it, whether a mask detector does.
BAD_ANNOTATIONS = [
    ("unknown_image", {"image_id": 99}, False, False),
    ("unknown_image", {"image_id": "1"}, False, False),
    ("unknown_image", {"image_id": [1]}, False, False),
    ("unknown_image", {"image_id": None}, False, False),
    ("unknown_category", {"category_id": 8}, False, False),
    ("unknown_category", {"category_id": {}}, False, False),
    ("bad_box", {"bbox": None}, False, False),
    ("bad_box", {"bbox": [1, 2, 3]}, False, False),
    ("bad_box", {"bbox": [1, 2, 3, "4"]}, False, False),
    ("bad_box", {"bbox": [1, 2, NAN, 4]}, False, False),
    ("bad_box", {"bbox": [1, 2, INFINITE, 4]}, False, False),
    ("bad_box", {"bbox": [1, 2, 10**400, 4]}, False, False),
    ("empty_box", {"bbox": [10, 10, 0, 5]}, False, False),
    ("empty_box", {"bbox": [10, 10, 5, -5]}, False, False),
    ("box_outside", {"bbox": [60, 10, 5, 5]}, False, False),
    ("box_outside", {"bbox": [10, -9, 5, 9]}, False, False),
    ("box_partly_outside", {"bbox": [50, 10, 20, 20]}, True, True),
    ("tiny_box", {"bbox": [10, 10, 20, 0.5]}, True, True),
    ("bad_box", {"bbox": [1, 2, True, 4]}, False, False),
    *(("bad_iscrowd", {"iscrowd": wrong}, False, False) for wrong in ("", "no", "2", 2, 0.5, [], {}, [0], NAN)),
    *(("bad_area", {"area": wrong}, True, True) for wrong in ("400", 0, -1, True, [], NAN, INFINITE, 10**400)),
    *(("ignore_set", {"ignore": wrong}, True, True) for wrong in (1, True, "1", "no", [])),
    ("unknown_category", {"category_id": "7"}, False, False),
    ("unknown_category", {"category_id": True}, False, False),
    ("unknown_category", {"category_id": 2**63}, False, False),
    ("unknown_image", {"image_id": True}, False, False),
    ("unknown_image", {"image_id": 1.5}, False, False),
    *(("bad_polygon", {"segmentation": wrong}, True, False) for wrong in ("", "text", 0, False, 5, [1, 2, 3, 4, 5, 6])),
    ("bad_polygon", {"segmentation": [[True, 1, 5, 1, 5, 5]]}, True, False),
    ("bad_rle", {"segmentation": {"size": [40, 60], "counts": [True, 2399]}}, True, False),
    ("bad_rle", {"segmentation": {"size": [40, 60], "counts": ["1200", 1200]}}, True, False),
    ("no_mask", {"segmentation": None}, True, False),
    ("no_mask", {"segmentation": []}, True, False),
    ("bad_polygon", {"segmentation": [[1, 1, 5, 5]]}, True, False),
    ("bad_polygon", {"segmentation": [[1, 1, 5, 5], [1, 1, 9, 1, 9, 9]]}, True, True),
    ("bad_rle", {"segmentation": {"size": [40, 60], "counts": "zz"}}, True, False),
    ("rle_size", {"segmentation": {"size": [60, 40], "counts": [1200, 1200]}}, True, False),
    ("rle_sum", {"segmentation": {"size": [40, 60], "counts": [1200, 1201]}}, True, False),
    ("empty_mask", {"segmentation": {"size": [40, 60], "counts": [2400]}}, True, False),
    ("empty_mask", {"segmentation": [[70, 50, 80, 50, 80, 60]]}, True, False),
]


@pytest.mark.parametrize(("kind", "fields", "boxes_keep", "masks_keep"), BAD_ANNOTATIONS)
def test_bad_annotations(
    write: Write, entries: Any, kind: str, fields: dict[str, Any], boxes_keep: bool, masks_keep: bool
) -> None:
    annotation, _ = entries
    source = write([annotation(1, 1), annotation(2, 1, **fields), annotation(3, 3)])
    report = check_data(source.images, source.annotations)
    assert report.problems == {kind: [2]}
    assert not report.ok
    assert KINDS[kind].text in report.table()
    assert report.dropped_annotations == 1 - masks_keep
    for masks, keep in ((False, boxes_keep), (True, masks_keep)):
        dataset = CocoDataset([source], masks=masks, training=True)
        assert len(dataset) == 3
        _, target = dataset[0]
        assert len(target["boxes"]) == 1 + keep
        assert dataset.dropped.dropped_annotations == 1 - keep
        clipped = KINDS[kind].action == "clipped"
        touched = not keep or clipped or (masks and kind == "bad_polygon")
        assert bool(dataset.dropped_summary) == touched


GOOD_ANNOTATIONS: list[dict[str, Any]] = [
    *({"iscrowd": value} for value in (None, 0, 0.0, False, "0", "false", "False")),
    *({"ignore": value} for value in (0, False, "0", "false")),
    {"id": 2.0},
    {"image_id": 1.0},
    {"category_id": 7.0},
    {"bbox": [10, 10, 1, 1]},
]


@pytest.mark.parametrize("fields", GOOD_ANNOTATIONS)
def test_values_that_mean_the_usual(write: Write, entries: Any, fields: dict[str, Any]) -> None:
    annotation, _ = entries
    source = write([annotation(1, 1), annotation(2, 1, **fields)])
    report = check_data(source.images, source.annotations)
    assert report.ok, report.table()
    assert (report.annotations, report.crowds) == (2, 0)
    for training in (True, False):
        _, target = CocoDataset([source], masks=True, training=training)[0]
        assert (len(target["boxes"]), target["iscrowd"].tolist()) == (2, [0, 0])


@pytest.mark.parametrize("crowd", [1, 1.0, True, "1", "true", "TRUE"])
def test_values_that_mean_a_crowd(write: Write, entries: Any, crowd: object) -> None:
    annotation, _ = entries
    source = write([annotation(1, 1), annotation(2, 1, iscrowd=crowd)])
    report = check_data(source.images, source.annotations)
    assert report.ok
    assert report.crowds == 1
    assert len(CocoDataset([source], masks=True, training=True)[0][1]["boxes"]) == 1
    assert CocoDataset([source], masks=True, training=False)[0][1]["iscrowd"].tolist() == [0, 1]


def test_ids_of_annotations_that_are_not_used(write: Write, entries: Any) -> None:
    annotation, _ = entries
    source = write([annotation(1, 1), *(annotation(n, 1) | {"id": n} for n in ("2", True, 2.5, 2**63, [2]))])
    report = check_data(source.images, source.annotations)
    assert report.problems == {"annotation_id": ["2", "#2", "#3", 2**63, "#5"]}
    truth = CocoDataset([source], masks=True, training=False).ground_truth
    assert truth is not None
    assert [one["id"] for one in truth["annotations"]] == [1, 2, 3, 4, 5, 6]


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


@pytest.mark.parametrize("wrong", [0, 1])
def test_boxes_that_are_fractions_of_the_image(write: Write, entries: Any, wrong: int) -> None:
    """They are found by the file, because [0, 0, 1, 1] is a box of pixels as well; a few other boxes do not matter."""
    annotation, _ = entries
    boxes = [[0.2, 0.3, 0.5, 0.25], [0, 0, 1, 1]] * 10 + [[10, 10, 20, 20]] * wrong
    source = write([annotation(n, 1, bbox=box) for n, box in enumerate(boxes, start=1)])
    report = check_data(source.images, source.annotations)
    assert len(report.problems["normalized_box"]) == 20
    assert ("no_objects" in report.problems) is not wrong
    for training in (True, False):
        if wrong:
            assert len(CocoDataset([source], masks=False, training=training)[0][1]["boxes"]) == 1
        else:
            with pytest.raises(InputError, match=KINDS["normalized_box"].text):
                CocoDataset([source], masks=False, training=training)


@pytest.mark.parametrize("others", [[[0, 0, 1, 1]], [[0.2, 0.3, 0.5, 0.25], [10, 10, 20, 20]]])
def test_boxes_of_pixels_that_lie_in_0_to_1(write: Write, entries: Any, others: list[Any]) -> None:
    annotation, _ = entries
    source = write([annotation(n, 1, bbox=box) for n, box in enumerate(others, start=1)])
    assert "normalized_box" not in check_data(source.images, source.annotations).problems
    assert len(CocoDataset([source], masks=False, training=True)[0][1]["boxes"]) == len(others)


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


def test_boxes_may_leave_the_image_by_rounding() -> None:
    assert box_problem([0, 0, 60.4, 40], 60, 40) is None
    assert box_problem([0, 0, 60.6, 40], 60, 40) == "box_partly_outside"
    assert box_problem([59.995, 0, 10, 10], 60, 40) == "box_outside"


@pytest.mark.parametrize("name", ["train", "val"])
def test_real_data_is_sound(shared: Path, name: str) -> None:
    data = shared / "data" / "coco_tiny_cc"
    report = check_data(data / f"{name}2017", data / "annotations" / f"instances_{name}2017.json")
    assert report.ok, report.table()
    assert report.crowds > 0
    bccd = shared / "data" / "bccd"
    assert check_data(bccd / "images", bccd / "annotations" / f"instances_{name}.json", decode=False).ok


GOOD: dict[str, Any] = {"images": [{}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "got a list"),
        ("3", "got a number"),
        ('{"images": []}', "images"),
        (json.dumps({**GOOD, "images": []}), "empty dataset"),
        (json.dumps({**GOOD, "images": {}}), "'images' must be a list, got an object"),
        (json.dumps({**GOOD, "categories": []}), "'categories' is an empty list"),
        (json.dumps({**GOOD, "categories": ["a"]}), r"categories\[0\]"),
        (json.dumps({**GOOD, "categories": [{"id": "1", "name": "a"}]}), r"categories\[0\]"),
        (json.dumps({**GOOD, "categories": [{"id": 1}]}), r"categories\[0\]"),
        (json.dumps({**GOOD, "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}), "both 'a' and 'b'"),
        ('{"images": [1], "categories": [1]}', "'annotations' is missing"),
    ],
)
def test_files_that_are_not_coco_json(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_annotations(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    for wrong in (tmp_path / "none.json", tmp_path, tmp_path / "latin.json"):
        with pytest.raises(InputError) as caught:
            read_annotations(wrong)
        assert str(wrong) in str(caught.value)
    (tmp_path / "bom.json").write_text(json.dumps(GOOD), encoding="utf-8-sig")
    assert read_annotations(tmp_path / "bom.json").images == [{}]


def test_a_missing_folder(write: Write) -> None:
    source = write()
    with pytest.raises(InputError, match="no such folder"):
        check_data(source.images + "x", source.annotations)
