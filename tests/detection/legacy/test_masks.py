"""Polygons and mask targets against the reference's numbers, pycocotools and torchvision."""

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torchvision.models.detection.roi_heads import project_masks_on_boxes
from torchvision.ops import box_iou

from vovnet.detection.legacy.masks import Polygons, mask_targets

SQUARE = [10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0]
TRIANGLE = [12.5, 4.0, 20.0, 16.25, 3.0, 14.0]


@pytest.fixture(scope="module")
def golden(shared: Path) -> Path:
    return shared / "reference" / "golden"


def test_targets_are_the_references_units(golden: Path) -> None:
    numbers = np.load(golden / "units.npz")
    polygons = Polygons(json.loads((golden / "units.json").read_text())["masktgt_polygons"])
    objects, boxes = torch.from_numpy(numbers["masktgt.gt"]), torch.from_numpy(numbers["masktgt.boxes"])
    found = mask_targets(polygons, objects, boxes, 28, (400, 600))
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), numbers["masktgt.out28"])


@pytest.mark.parametrize("image", [0, 1])
@pytest.mark.parametrize("run", ["all", "arange"])
def test_targets_are_those_of_the_references_training(golden: Path, run: str, image: int) -> None:
    numbers = np.load(golden / "train_mrcn_v57.npz")
    texts = json.loads((golden / "train_mrcn_v57.json").read_text())
    boxes = torch.from_numpy(numbers[f"{run}.mask_boxes{image}"])
    truth = torch.from_numpy(numbers[f"target{image}.boxes"])
    one = torch.tensor([0, 0, 1, 1])
    objects = box_iou(truth + one, boxes + one).argmax(dim=0)
    polygons = Polygons(texts[f"target{image}_polygons"])
    found = mask_targets(polygons, objects, boxes, 28, tuple(texts["image_sizes"][image]))
    np.testing.assert_array_equal(found.numpy(), numbers[f"{run}.mask_targets{image}"])


def test_targets_are_pycocotools_drawings() -> None:
    polygons = Polygons([[SQUARE, TRIANGLE], [TRIANGLE]])
    boxes = torch.tensor([[4.0, 2.0, 32.0, 30.0], [0.0, 0.0, 14.0, 28.0], [2.0, 3.0, 21.0, 17.0]])
    found = mask_targets(polygons, torch.tensor([0, 1, 1]), boxes, 14, (50, 60))
    for row, shapes in enumerate(([SQUARE, TRIANGLE], [TRIANGLE], [TRIANGLE])):
        x0, y0, x1, y1 = boxes[row].double().tolist()
        parts = [((np.reshape(s, (-1, 2)) - (x0, y0)) * (14 / (x1 - x0), 14 / (y1 - y0))).ravel() for s in shapes]
        drawn = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(parts, 14, 14)))
        assert 0 < drawn.sum() < 14 * 14
        np.testing.assert_array_equal(found[row].numpy(), drawn)


def test_objects_without_polygons_keep_their_place_and_have_an_empty_target() -> None:
    polygons = Polygons([[], [[1.0, 2.0, 3.0, 4.0]], [SQUARE]])
    assert len(polygons) == 3
    boxes = torch.tensor([[10.0, 10.0, 30.0, 30.0]] * 3)
    found = mask_targets(polygons, torch.arange(3), boxes, 28, (50, 60))
    assert found.sum(dim=(1, 2)).tolist() == [0, 0, 28 * 28]


def test_no_boxes_and_no_objects() -> None:
    nothing = torch.zeros(0, dtype=torch.int64)
    for polygons in (Polygons([]), Polygons([[SQUARE]])):
        assert mask_targets(polygons, nothing, torch.zeros(0, 4), 28, (50, 60)).shape == (0, 28, 28)


def test_boxes_of_no_width_are_a_pixel_wide() -> None:
    boxes = torch.tensor([[15.0, 15.0, 15.0, 20.0], [15.0, 15.0, 16.0, 20.0]])
    found = mask_targets(Polygons([[SQUARE]]), torch.zeros(2, dtype=torch.int64), boxes, 28, (50, 60))
    assert found[0].all()
    assert torch.equal(found[0], found[1])


def test_a_hair_of_a_box_takes_no_gigabytes() -> None:
    boxes = torch.tensor([[10.0, 10.0, 10.000001, 10.000001]])
    assert mask_targets(Polygons([[SQUARE]]), torch.tensor([0]), boxes, 28, (50, 60)).shape == (1, 28, 28)


def test_bitmaps_have_torchvisions_targets() -> None:
    bitmap = np.zeros((50, 60), dtype=np.uint8)
    bitmap[10:31, 12:25] = 1
    other = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([TRIANGLE], 50, 60)))
    polygons = Polygons([bitmap, [SQUARE], other])
    objects = torch.tensor([2, 1, 0, 2])
    boxes = torch.tensor([[2.0, 3, 21, 17], [10, 10, 30, 30], [8, 5, 28, 40], [5, 5, 15, 16]])
    found = mask_targets(polygons, objects, boxes, 28, (50, 60))
    rows = [0, 2, 3]
    soft = project_masks_on_boxes(torch.from_numpy(np.stack([bitmap, bitmap, other])), boxes[rows], objects[rows], 28)
    np.testing.assert_array_equal(found[rows].numpy(), (soft >= 0.5).numpy())
    assert found[1].all()
    # Drawn as a polygon, the triangle covers nearly the same cells: they are half a pixel apart.
    drawn = mask_targets(Polygons([[TRIANGLE]]), torch.tensor([0]), boxes[:1], 28, (50, 60))
    assert (drawn[0] != found[0]).float().mean() < 0.1


def test_resize_and_flip() -> None:
    moved = Polygons([[SQUARE, TRIANGLE]]).resized(1.5, 0.3).flipped(90)
    for part, given in zip(moved.objects[0], (SQUARE, TRIANGLE), strict=True):
        # float32 by torch, as the reference has it
        expected = torch.tensor(given)
        expected[::2] = 90 - expected[::2] * 1.5 - 1
        expected[1::2] *= 0.3
        np.testing.assert_array_equal(part, expected.numpy())
        assert part.dtype == np.float32


def test_bitmaps_are_resized_and_flipped() -> None:
    bitmap = np.random.default_rng(0).integers(0, 2, (7, 9), dtype=np.uint8)
    found = Polygons([bitmap]).resized(2.0, 3.0).flipped(18).objects[0]
    np.testing.assert_array_equal(found, bitmap.repeat(3, axis=0).repeat(2, axis=1)[:, ::-1])
    assert Polygons([bitmap]).resized(13 / 9, 4 / 7).objects[0].shape == (4, 13)


@pytest.mark.parametrize(
    ("index", "kept"),
    [
        (1, [1]),
        (slice(1, None), [1, 2]),
        ([2, 0], [2, 0]),
        ([], []),
        (np.array([True, False, True]), [0, 2]),
        (torch.tensor([False, True, True]), [1, 2]),
        (torch.tensor([2, 2]), [2, 2]),
        (torch.tensor(0), [0]),
    ],
)
def test_choosing_objects(index: Any, kept: list[int]) -> None:
    shapes = [[[float(number)] * 6] for number in range(3)]
    chosen = Polygons(shapes)[index]
    assert [int(shape[0][0]) for shape in chosen.objects] == kept


def test_travels_like_a_tensor() -> None:
    bitmap = np.eye(5, dtype=np.uint8)
    polygons = Polygons([[SQUARE], bitmap])
    assert polygons.to("cpu", non_blocking=True) is polygons
    again = pickle.loads(pickle.dumps(polygons))
    np.testing.assert_array_equal(again.objects[0][0], np.float32(SQUARE))
    np.testing.assert_array_equal(again.objects[1], bitmap)
    assert len(pickle.dumps(Polygons([[SQUARE]] * 20))) < 20 * 200
