"""CocoDataset gives what pycocotools reads; files are joined; what contradicts is refused."""

import contextlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from torchvision import tv_tensors

from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.coco import CocoDataset, without_masks
from vovnet.errors import InputError

Write = Callable[..., DataSource]


@pytest.fixture(scope="module", params=["train", "val"])
def real(shared: Path, request: pytest.FixtureRequest) -> DataSource:
    data = shared / "data" / "coco_tiny_cc"
    return DataSource(
        str(data / f"{request.param}2017"), str(data / "annotations" / f"instances_{request.param}2017.json")
    )


@pytest.mark.parametrize("training", [True, False])
def test_equals_pycocotools(real: DataSource, training: bool) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(real.annotations)
    dataset = CocoDataset([real], masks=True, training=training)
    assert len(dataset) == len(reference.imgs)
    assert dataset.dropped_summary == ""
    for index in range(len(dataset)):
        image, target = dataset[index]
        entry = reference.imgs[target["image_id"]]
        assert dataset.file_name(index) == entry["file_name"]
        assert dataset.image_size(index) == (entry["height"], entry["width"]) == tuple(image.shape[1:])
        assert dataset.image_labels(index) == target["labels"].tolist()
        annotations = reference.loadAnns(reference.getAnnIds(entry["id"], iscrowd=False if training else None))
        assert len(target["labels"]) == len(annotations)
        for row, annotation in enumerate(annotations):
            x, y, w, h = annotation["bbox"]
            corners = np.clip([x, y, x + w, y + h], 0, [entry["width"], entry["height"]] * 2)
            np.testing.assert_allclose(target["boxes"][row].numpy(), corners, rtol=1e-6)
            np.testing.assert_array_equal(target["masks"][row].numpy(), reference.annToMask(annotation))
            assert dataset.categories[target["labels"][row] - 1]["id"] == annotation["category_id"]
            assert float(target["area"][row]) == pytest.approx(annotation["area"])
            assert int(target["iscrowd"][row]) == annotation["iscrowd"]
    if not training:
        assert dataset.ground_truth is not None
        keys = ("id", "image_id", "category_id", "bbox", "area", "iscrowd")
        expected = [{key: one[key] for key in keys} for one in reference.anns.values()]
        found = [{key: one[key] for key in keys} for one in dataset.ground_truth["annotations"]]
        assert sorted(found, key=lambda one: one["id"]) == sorted(expected, key=lambda one: one["id"])


def test_the_protocol(write: Write) -> None:
    image, target = CocoDataset([write()], masks=True, training=True)[1]
    assert isinstance(image, tv_tensors.Image)
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(
        image.permute(1, 2, 0).numpy(), np.random.default_rng(2).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    )
    boxes = target["boxes"]
    assert isinstance(boxes, tv_tensors.BoundingBoxes)
    assert boxes.canvas_size == (40, 60)
    assert boxes.format == tv_tensors.BoundingBoxFormat.XYXY
    assert boxes.dtype == torch.float32
    assert isinstance(target["masks"], tv_tensors.Mask)
    assert target["masks"].dtype == torch.uint8
    assert target["labels"].tolist() == [1]
    assert type(target["image_id"]) is int


def test_images_without_objects(write: Write, entries: Any) -> None:
    annotation, _ = entries
    crowd = annotation(2, 2, iscrowd=1)
    source = write([annotation(1, 1), crowd])
    dataset = CocoDataset([source], masks=True, training=True)
    assert len(dataset) == 3
    for index in (1, 2):
        _, target = dataset[index]
        assert target["boxes"].shape == (0, 4)
        assert target["labels"].shape == (0,)
        assert target["masks"].shape == (0, 40, 60)
    assert len(CocoDataset([source], masks=True, training=True, keep_empty=False)) == 1
    evaluation = CocoDataset([source], masks=True, training=False, keep_empty=False)
    assert len(evaluation) == 3
    assert evaluation[1][1]["iscrowd"].tolist() == [1]


def test_indices(write: Write) -> None:
    dataset = CocoDataset([write()], masks=False, training=True)
    assert dataset[-1][1]["image_id"] == 3
    assert "masks" not in dataset[0][1]
    with pytest.raises(IndexError):
        dataset[3]


def test_arbitrary_category_ids(write: Write, entries: Any) -> None:
    annotation, _ = entries
    categories = [{"id": 900, "name": "z"}, {"id": 0, "name": "y"}, {"id": 33, "name": "x", "supercategory": "s"}]
    source = write([annotation(n, n, category_id=c) for n, c in ((1, 900), (2, 0), (3, 33))], categories=categories)
    dataset = CocoDataset([source], masks=False, training=True)
    assert dataset.categories == [{"id": 0, "name": "y"}, {"id": 33, "name": "x"}, {"id": 900, "name": "z"}]
    assert [dataset[index][1]["labels"].item() for index in range(3)] == [3, 1, 2]


def test_missing_area_and_iscrowd(write: Write, entries: Any) -> None:
    annotation, _ = entries
    bare = annotation(1, 1, area=None, iscrowd=None)
    source = write([bare, annotation(2, 2, area=None, segmentation=None), annotation(3, 3, area=5.0)])
    triangle = annotation(4, 1, area=None, segmentation=[[10, 10, 30, 10, 30, 30]])
    for masks in (False, True):
        truth = CocoDataset([source], masks=masks, training=False).ground_truth
        assert truth is not None
        assert {one["id"]: (one["area"], one["iscrowd"]) for one in truth["annotations"]} == {
            1: (400.0, 0),
            2: (400.0, 0),  # without a mask its box still counts
            3: (5.0, 0),
        }
    target = CocoDataset([write([triangle])], masks=True, training=True)[0][1]
    assert target["area"].item() == target["masks"].sum().item() == pytest.approx(200, abs=20)


def test_boxes_are_clipped_in_targets_only(write: Write, entries: Any) -> None:
    annotation, _ = entries
    dataset = CocoDataset([write([annotation(1, 1, bbox=[-5, 30, 20, 20])])], masks=False, training=False)
    assert dataset[0][1]["boxes"].tolist() == [[0, 30, 15, 40]]
    assert dataset.ground_truth is not None
    assert dataset.ground_truth["annotations"][0]["bbox"] == [-5, 30, 20, 20]


def test_grey(write: Write) -> None:
    assert CocoDataset([write()], masks=False, training=True, channels=1)[0][0].shape == (1, 40, 60)


def test_exif_follows_the_annotations(write: Write, entries: Any) -> None:
    _, image = entries
    source = write(images=[image(1), image(2, width=40, height=60), image(3)])
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("1.png", "2.png"):
        with Image.open(Path(source.images, name)) as opened:
            opened.save(Path(source.images, name), exif=exif)
    dataset = CocoDataset([source], masks=False, training=False)
    assert dataset[0][0].shape == (3, 40, 60)  # annotated as stored
    assert dataset[1][0].shape == (3, 60, 40)  # annotated upright


def test_several_files(write: Write, entries: Any) -> None:
    annotation, image = entries
    first = write(name="one", image_count=2)
    second = write(
        [annotation(1, 2), annotation(2, 5, category_id=4)],
        [image(2), image(5, file_name="1.png")],
        [{"id": 7, "name": "cat"}, {"id": 4, "name": "cow"}],
        name="two",
    )
    dataset = CocoDataset([first, second], masks=True, training=False)
    assert dataset.categories == [{"id": 4, "name": "cow"}, {"id": 7, "name": "cat"}, {"id": 90, "name": "dog"}]
    assert [dataset[index][1]["image_id"] for index in range(4)] == [1, 2, 6, 5]
    assert [dataset.source_of(index) for index in range(4)] == [
        (first.annotations, 1),
        (first.annotations, 2),
        (second.annotations, 2),
        (second.annotations, 5),
    ]
    truth = dataset.ground_truth
    assert truth is not None
    assert [entry["id"] for entry in truth["images"]] == [1, 2, 6, 5]
    assert [(entry["id"], entry["image_id"]) for entry in truth["annotations"]] == [(1, 1), (2, 2), (3, 6), (4, 5)]
    third = CocoDataset([first, second, first, second], masks=True, training=True)
    assert len({third[index][1]["image_id"] for index in range(8)}) == 8


@pytest.mark.parametrize(
    ("categories", "words"),
    [([{"id": 7, "name": "cow"}], "category 7 is 'cat'"), ([{"id": 8, "name": "cat"}], "category 'cat' has id 7")],
)
def test_files_that_contradict(write: Write, categories: list[Any], words: str) -> None:
    first, second = write(name="one"), write(name="two", categories=categories)
    with pytest.raises(InputError, match=words) as caught:
        CocoDataset([first, second], masks=False, training=True)
    assert first.annotations in str(caught.value)
    assert second.annotations in str(caught.value)


def test_categories_of_a_detector(write: Write) -> None:
    theirs = [{"id": 1, "name": "bird"}, {"id": 7, "name": "cat"}, {"id": 90, "name": "dog"}]
    dataset = CocoDataset([write()], masks=False, training=False, categories=theirs)
    assert dataset.categories == theirs
    assert dataset[0][1]["labels"].tolist() == [2]
    assert dataset.ground_truth is not None
    assert dataset.ground_truth["categories"] == theirs
    with pytest.raises(InputError) as caught:
        CocoDataset([write()], masks=False, training=False, categories=[{"id": 7, "name": "bird"}])
    assert "7 is 'cat' in the data and 'bird' in the detector" in str(caught.value)
    assert "90 'dog' is only in the data" in str(caught.value)


@pytest.mark.parametrize("training", [True, False])
def test_nothing_usable(write: Write, entries: Any, training: bool) -> None:
    annotation, _ = entries
    for annotations in ([], [annotation(1, 1, bbox=[0, 0, -1, 5])], [annotation(1, 1, iscrowd=1)]):
        with pytest.raises(InputError, match="empty dataset"):
            CocoDataset([write(annotations)], masks=False, training=training)
    with pytest.raises(InputError, match="no annotation files"):
        CocoDataset([], masks=False, training=training)


def test_missing_images_in_evaluation(write: Write) -> None:
    source = write()
    for path in list(Path(source.images).iterdir())[:2]:
        path.unlink()
    with pytest.raises(InputError, match=r"missing image file: image \d: .*/data/\d.png, image \d: .*/data/\d.png; an"):
        CocoDataset([source], masks=False, training=False)


def test_masks_without_pixels_stay_in_the_ground_truth(write: Write, entries: Any) -> None:
    annotation, _ = entries
    source = write([annotation(1, 1), annotation(2, 1, segmentation=[[1, 1, 1, 1, 1, 1]])])
    truth = CocoDataset([source], masks=True, training=False).ground_truth
    assert truth is not None
    assert len(truth["annotations"]) == 2


def test_goes_to_other_processes(real: DataSource) -> None:
    dataset = CocoDataset([real], masks=True, training=True)
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[3][1]["masks"], dataset[3][1]["masks"])
    assert len(pickle.dumps(dataset)) < 3 * len(
        json.dumps(json.loads(Path(real.annotations).read_text())["annotations"])
    )


def test_without_masks(write: Write) -> None:
    dataset = CocoDataset([write()], masks=True, training=False)
    without = without_masks(dataset)
    assert "masks" not in without[1][1]
    assert "masks" in dataset[1][1]
    assert without.ground_truth == dataset.ground_truth
    other = [1, 2]
    assert without_masks(other) is other


def test_evaluation_keeps_the_boxes_of_objects_without_masks(tmp_path):
    """One file has masks and one has not: every box counts, and an image without a mask does not crash."""
    square = [[2.0, 2.0, 10.0, 2.0, 10.0, 10.0, 2.0, 10.0]]
    sources = []
    for number, segmentation in ((1, square), (2, None)):
        folder = tmp_path / str(number)
        folder.mkdir()
        Image.new("RGB", (20, 20)).save(folder / "a.png")
        annotation = {"id": 1, "image_id": number, "category_id": 1, "bbox": [2, 2, 8, 8], "iscrowd": 0}
        if segmentation:
            annotation["segmentation"] = segmentation
        content = {
            "images": [{"id": number, "file_name": "a.png", "width": 20, "height": 20}],
            "annotations": [annotation],
            "categories": [{"id": 1, "name": "thing"}],
        }
        (tmp_path / f"{number}.json").write_text(json.dumps(content))
        sources.append(DataSource(str(folder), str(tmp_path / f"{number}.json")))
    dataset = CocoDataset(sources, masks=True, training=False)
    assert len(dataset.ground_truth["annotations"]) == 2
    assert [len(dataset[index][1]["boxes"]) for index in range(2)] == [1, 1]


@pytest.mark.parametrize("number", [2**63, 10**30])
def test_ids_that_no_integer_holds_are_left_out(tmp_path, number):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    image = {"file_name": "a.png", "width": 20, "height": 20}
    box = {"category_id": 1, "bbox": [2, 2, 8, 8], "iscrowd": 0}
    content = {
        "images": [{"id": 1, **image}, {"id": number, **image}],
        "annotations": [{"id": 1, "image_id": 1, **box}, {"id": 2, "image_id": number, **box}],
        "categories": [{"id": 1, "name": "thing"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    dataset = CocoDataset([DataSource(str(tmp_path), str(tmp_path / "a.json"))], masks=False, training=True)
    assert len(dataset) == 1
