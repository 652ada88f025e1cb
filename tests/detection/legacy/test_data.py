"""The reference's training data: its choice of images and objects, boxes, resize and flip, against its own numbers."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor
from torchvision import tv_tensors

from vovnet.detection.config.data import DataRecipe
from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.loader import batch_loader
from vovnet.detection.legacy.data import LegacyCocoDataset, LegacyTransforms, inclusive_corners, legacy_train_transforms
from vovnet.detection.legacy.sampler import LegacyBatchStream
from vovnet.errors import InputError

Write = Callable[..., DataSource]
SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]


@pytest.fixture
def golden(shared: Path) -> Path:
    return shared / "reference" / "golden"


@pytest.fixture
def units(golden: Path) -> Any:
    return json.loads((golden / "units.json").read_text())


@pytest.fixture
def minicoco(golden: Path, tmp_path: Path) -> LegacyCocoDataset:
    images = tmp_path / "images"
    images.mkdir()
    for path in (golden / "images").iterdir():
        shutil.copyfile(path, images / path.name)
    Image.new("RGB", (512, 512)).save(images / "astronaut.png")
    return LegacyCocoDataset([DataSource(str(images), str(golden / "minicoco.json"))], masks=True)


def annotation(number: int, image_id: int, **fields: Any) -> dict[str, Any]:
    entry = {"id": number, "image_id": image_id, "category_id": 7, "bbox": [10.0, 10.0, 20.0, 20.0], "iscrowd": 0}
    return {**entry, "segmentation": [SQUARE], **fields}


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a dataset of 60 × 40 images with the given ids."""

    def write_dataset(ids: list[int], annotations: list[Any], name: str = "data") -> DataSource:
        folder = tmp_path / name
        folder.mkdir()
        for number in ids:
            pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
        content = {
            "images": [{"id": n, "file_name": f"{n}.png", "width": 60, "height": 40} for n in ids],
            "annotations": annotations,
            "categories": [{"id": 7, "name": "cat"}, {"id": 9, "name": "dog"}],
        }
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(content))
        return DataSource(str(folder), str(path))

    return write_dataset


def equal(found: Tensor, expected: Any) -> None:
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), np.asarray(expected, dtype=np.float32))


def test_images_and_first_item_are_the_references(minicoco: LegacyCocoDataset, units: Any) -> None:
    ids = [minicoco[index][1]["image_id"] for index in range(len(minicoco))]
    assert ids == units["dataset_train_ids"]
    image, target = minicoco[0]
    expected = units["dataset_item0"]
    count = len(expected["labels"])  # of the first objects; there are more by now
    equal(target["corners"][:count], expected["boxes_xyxy"])
    assert target["labels"][:count].tolist() == expected["labels"]
    assert isinstance(target["boxes"], tv_tensors.BoundingBoxes)
    assert tuple(image.shape) == (3, 400, 600)
    assert "masks" not in target
    assert len(target["polygons"]) == len(target["labels"]) == len(target["corners"]) == 14
    assert len(minicoco[3][1]["labels"]) == 0  # only a crowd: the image stays


def test_flip_is_the_references(minicoco: LegacyCocoDataset, units: Any) -> None:
    image, given = minicoco[0]
    pixels, target = LegacyTransforms([400], 667, flip=1.0)(image, given)
    expected = units["dataset_item0_hflip"]
    equal(target["boxes"][:4], expected["boxes_xyxy"])
    equal(torch.from_numpy(target["polygons"].objects[0][0][:6]), expected["poly0_first6"])
    assert torch.equal(pixels, image.as_subclass(Tensor).flip(-1))


def test_resize_is_the_references(minicoco: LegacyCocoDataset, units: Any) -> None:
    pixels, target = LegacyTransforms([800], 1333, flip=0.0)(*minicoco[0])
    assert tuple(pixels.shape) == (3, 800, 1200)
    equal(target["boxes"][:4], units["dataset_item0_resize_1200x800"]["boxes_xyxy"])


@pytest.mark.parametrize("config", ["mrcn_v57", "frcn_v39"])
def test_training_targets_are_the_references(minicoco: LegacyCocoDataset, golden: Path, config: str) -> None:
    numbers = np.load(golden / f"train_{config}.npz")
    texts = json.loads((golden / f"train_{config}.json").read_text())
    for number, flip in ((0, 0.0), (1, 1.0)):
        pixels, target = LegacyTransforms([400], 667, flip)(*minicoco[number])
        assert list(pixels.shape[1:]) == texts["image_sizes"][number]
        equal(target["boxes"], numbers[f"target{number}.boxes"])
        np.testing.assert_array_equal(target["labels"].numpy(), numbers[f"target{number}.labels"])
        polygons = texts.get(f"target{number}_polygons", [])
        for found, expected in zip(target["polygons"].objects if polygons else (), polygons, strict=True):
            assert [part.tolist() for part in found] == expected


def test_pixels_are_pillows(minicoco: LegacyCocoDataset, golden: Path) -> None:
    pixels, _ = LegacyTransforms([300], 500, flip=0.0)(*minicoco[2])
    with Image.open(golden / "images" / "synth.png") as opened:
        expected = np.asarray(opened.convert("RGB").resize((449, 300), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(pixels.permute(1, 2, 0).numpy(), expected)


def test_one_draw_decides_for_image_boxes_and_polygons() -> None:
    image = torch.arange(3 * 8 * 12, dtype=torch.uint8).reshape(3, 8, 12)
    target = {"boxes": torch.tensor([[1.0, 2.0, 4.0, 6.0]]), "labels": torch.tensor([1]), "image_id": 5}
    transforms = legacy_train_transforms(DataRecipe(train_min_sizes=[8, 16], train_max_size=100, flip=0.5))
    seen = set()
    for _ in range(40):
        pixels, found = transforms(tv_tensors.Image(image), target)
        scale = pixels.shape[1] // 8
        mirrored = bool(pixels[0, 0, 0] > pixels[0, 0, -1])
        expected = torch.tensor([[1.0, 2.0, 3.0, 5.0]]) * scale
        if mirrored:
            width = 12 * scale
            expected = torch.stack(
                (width - expected[:, 2] - 1, expected[:, 1], width - expected[:, 0] - 1, expected[:, 3]), dim=1
            )
        equal(found["boxes"], expected)
        assert set(found) == {"boxes", "labels", "image_id"}
        seen.add((scale, mirrored))
    assert len(seen) == 4


def test_datasets_of_other_people() -> None:
    masks = torch.zeros(4, 20, 30, dtype=torch.uint8)
    masks[2, 5:15, 10:20] = 1
    target = {
        "boxes": torch.tensor([[0.0, 0.0, 1.0, 9.0], [1.0, 1.0, 9.0, 9.0], [10.0, 5.0, 20.0, 15.0], [8, 8, 30, 20]]),
        "labels": torch.tensor([1, 2, 3, 4]),
        "iscrowd": torch.tensor([0, 1, 0, 0]),
        "masks": tv_tensors.Mask(masks),
        "image_id": 3,
    }
    _, found = LegacyTransforms([40], 100, flip=0.0)(torch.zeros(3, 20, 30, dtype=torch.uint8), target)
    # The first is a pixel wide, the second a crowd; the inclusive corners are a pixel further in.
    equal(found["boxes"], [[20.0, 10.0, 38.0, 28.0], [16.0, 16.0, 58.0, 38.0]])
    assert found["labels"].tolist() == [3, 4]
    np.testing.assert_array_equal(found["polygons"].objects[0], masks[2].numpy().repeat(2, axis=0).repeat(2, axis=1))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vertical_flip", 0.5),
        ("scale_jitter", [0.1, 2.0]),
        ("colour", 0.3),
        ("mosaic", 0.5),
        ("copy_paste", 0.5),
        ("repeat_threshold", 0.1),
        ("crop", 512),
    ],
)
def test_what_the_reference_does_not_have(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"data.{key}"):
        legacy_train_transforms(DataRecipe(**{key: value}))


def test_inclusive_corners_are_computed_as_torch_does() -> None:
    boxes = np.random.default_rng(0).uniform(-5, 70, (200, 4)).round(2)
    x, y, w, h = torch.tensor(boxes.tolist()).unbind(1)
    expected = torch.stack((x, y, x + (w - 1).clamp(min=0), y + (h - 1).clamp(min=0)), dim=1)
    expected[:, 0::2].clamp_(min=0, max=59)
    expected[:, 1::2].clamp_(min=0, max=39)
    equal(torch.from_numpy(inclusive_corners(boxes, np.array([40, 60]))), expected)
    assert inclusive_corners(np.zeros((0, 4)), np.array([40, 60])).shape == (0, 4)


def test_images_by_id_and_source_after_source(write: Write) -> None:
    first = write([5, 2, 9], [annotation(n, n) for n in (5, 2, 9)], "first")
    second = write([3, 1], [annotation(1, 3), annotation(2, 1)], "second")
    dataset = LegacyCocoDataset([first, second], masks=False)
    assert [dataset.source_of(index)[1] for index in range(5)] == [2, 5, 9, 1, 3]
    assert dataset.dropped_summary == ""
    assert "polygons" not in dataset[0][1]
    again = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(again[1][1]["corners"], dataset[1][1]["corners"])


def test_which_images_and_objects_stay(write: Write) -> None:
    thin, outside = {"bbox": [5.0, 5.0, 1.0, 30.0]}, {"bbox": [80.0, 5.0, 20.0, 20.0]}
    crowd = {"iscrowd": 1, "segmentation": {"size": [40, 60], "counts": [0, 100, 2300]}}
    entries = [
        annotation(1, 1),
        annotation(2, 2, **thin),  # no other annotation: left out
        annotation(3, 4, **crowd),
        annotation(4, 5, **thin),
        annotation(5, 5, bbox=[20.0, 10.0, 1.5, 9.0]),
        annotation(6, 5, category_id=9),
        annotation(7, 6, **outside),
        annotation(8, 7, **crowd, bbox=[1.0, 1.0, 1.0, 1.0]),
    ]
    dataset = LegacyCocoDataset([write([1, 2, 3, 4, 5, 6, 7], entries)], masks=True)
    targets = [dataset[index][1] for index in range(len(dataset))]
    assert [target["image_id"] for target in targets] == [1, 4, 5, 6]
    assert [len(target["labels"]) for target in targets] == [1, 0, 2, 0]
    for key in ("corners", "boxes", "labels", "area", "iscrowd", "polygons"):
        assert len(targets[2][key]) == 2, key
    equal(targets[2]["corners"], [[20.0, 10.0, 20.5, 18.0], [10.0, 10.0, 29.0, 29.0]])
    assert targets[2]["labels"].tolist() == [1, 2]
    assert "3 images without an annotation over a pixel" in dataset.dropped_summary
    assert "1 objects at most a pixel" in dataset.dropped_summary


def test_shapes_that_polygons_cannot_say(write: Write) -> None:
    rle = {"size": [40, 60], "counts": [405, 20, 1975]}
    speck = [[12.0, 12.0, 12.1, 12.0, 12.1, 12.1]]  # covers no pixel
    line = [[1.0, 2.0, 3.0, 4.0]]
    entries = [
        annotation(1, 1, segmentation=rle),
        annotation(2, 1, segmentation=speck),
        annotation(3, 1, segmentation=line),
        annotation(4, 1, segmentation=[]),
        annotation(5, 1, segmentation=[*line, SQUARE]),
        annotation(6, 1, segmentation={"size": [4, 4], "counts": [16]}),
    ]
    dataset = LegacyCocoDataset([write([1], entries)], masks=True)
    shapes = dataset[0][1]["polygons"].objects
    assert len(shapes) == 4
    np.testing.assert_array_equal(shapes[0], coco_mask.decode(coco_mask.frPyObjects(rle, 40, 60)))
    assert [part.tolist() for part in shapes[1]] == np.float32(speck).tolist()
    assert shapes[2] == []
    assert [part.tolist() for part in shapes[3]] == [SQUARE]
    assert dataset.dropped.dropped_annotations == 2
    # Without masks every box is as good as another.
    assert len(LegacyCocoDataset([DataSource(*_paths(dataset))], masks=False)[0][1]["labels"]) == 6


def _paths(dataset: LegacyCocoDataset) -> tuple[str, str]:
    annotations = Path(dataset.source_of(0)[0])
    return str(annotations.with_suffix("")), str(annotations)


def test_unusable_data_are_refused_as_ever(write: Write) -> None:
    with pytest.raises(InputError, match="no usable object"):
        LegacyCocoDataset([write([1], [annotation(1, 1, bbox=[1.0, 1.0, 1.0, 1.0])])], masks=False)
    with pytest.raises(InputError, match="no annotation has a usable mask"):
        LegacyCocoDataset([write([1], [annotation(1, 1, segmentation=[])], "maskless")], masks=True)
    with pytest.raises(InputError, match="annotations cannot be read"):
        LegacyCocoDataset([DataSource("nowhere", "nowhere.json")], masks=True)
    with pytest.raises(InputError, match="training=False"):
        LegacyCocoDataset([write([1], [annotation(1, 1)], "evaluated")], masks=True, training=False)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_through_the_loader(write: Write, workers: int) -> None:
    dataset = LegacyCocoDataset([write([1, 2, 3], [annotation(n, n) for n in (1, 2, 3)])], masks=True)
    transforms = legacy_train_transforms(DataRecipe(train_min_sizes=[40, 80], train_max_size=200))
    batches = batch_loader(dataset, transforms, LegacyBatchStream([0, 0, 0], 2), workers=workers)
    sizes = []
    for _ in range(4):
        images, targets = next(batches)
        sizes.append(len(images))
        for image, target in zip(images, targets, strict=True):
            assert set(target) == {"boxes", "labels", "image_id", "polygons"}
            scale = image.shape[1] / 40
            left = float(target["polygons"].objects[0][0][::2].min())
            assert left in (10 * scale, image.shape[2] - 30 * scale - 1)
            assert float(target["boxes"][0, 0]) in (10 * scale, image.shape[2] - 29 * scale - 1)
    assert sizes == [2, 1, 2, 1]
