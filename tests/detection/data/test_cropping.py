"""Crops of large images: against images in which each pixel names its object, and against the tiles of prediction."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from vovnet.detection.config.data import DataRecipe
from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.data.cropping import ON_OBJECT, cropped, drawn_region, random_crop, tiles_of
from vovnet.detection.data.datasets import checked
from vovnet.detection.data.keypoints import Keypoints
from vovnet.detection.data.loader import training_loader
from vovnet.detection.data.sampler import aspect_groups
from vovnet.detection.data.samples import Sample
from vovnet.detection.data.transforms import seeded, train_transforms
from vovnet.detection.data.windows import VISIBLE
from vovnet.detection.masks import encode_masks
from vovnet.results.tiling import Region, Tiling

RECTANGLES = st.lists(st.tuples(*[st.integers(0, 39)] * 2, *[st.integers(1, 30)] * 2), min_size=1, max_size=6)


def labelled(height: int, width: int, rectangles: list[tuple[int, int, int, int]]) -> tuple[Sample, Tensor]:
    """A sample, and an image (height, width) in which each pixel has the number of its object, from 1; 0 is none.

    A later object covers the earlier ones, so that masks have all kinds of shapes; boxes are the smallest around them.
    """
    numbers = torch.zeros(height, width, dtype=torch.int64)
    for number, (x, y, w, h) in enumerate(rectangles, start=1):
        numbers[y : y + h, x : x + w] = number
    seen = [number for number in range(1, len(rectangles) + 1) if bool((numbers == number).any())]
    masks = torch.stack([numbers == number for number in seen]).to(torch.uint8)
    boxes = torch.tensor([tight(mask) for mask in masks])
    points = torch.cat((boxes.reshape(-1, 2, 2), torch.full((len(seen), 2, 1), 2.0)), dim=-1)
    target = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
        "labels": torch.tensor(seen),
        "masks": tv_tensors.Mask(masks),
        "keypoints": Keypoints.of(points, (height, width), (0, 1)),
        "iscrowd": torch.tensor([number % 2 for number in seen]),
        "area": masks.flatten(1).sum(1).float(),
        "image_id": 9,
    }
    image = torch.stack((numbers, numbers * 2, numbers * 3)).to(torch.uint8)
    return (tv_tensors.Image(image), target), numbers


def tight(mask: Tensor) -> list[float]:
    rows, columns = np.nonzero(mask.numpy())
    return [float(columns.min()), float(rows.min()), float(columns.max() + 1), float(rows.max() + 1)]


@given(RECTANGLES, st.data())
def test_a_crop_has_what_a_label_image_has_there(rectangles: Any, data: st.DataObject) -> None:
    (image, target), numbers = labelled(40, 50, rectangles)
    top, left = data.draw(st.integers(0, 30)), data.draw(st.integers(0, 40))
    region = Region(top, left, min(40, top + 16), min(50, left + 16))
    found, cut = cropped((image, target), region)
    window = numbers[top : region.bottom, left : region.right]
    assert torch.equal(found[0].as_subclass(Tensor), window.to(torch.uint8))
    assert found.untyped_storage().nbytes() == found.nbytes, "the whole image is kept in memory"
    expected = []
    for number, box in zip(target["labels"].tolist(), target["boxes"].tolist(), strict=True):
        x0, y0, x1, y1 = box
        sides = [min(x1, region.right) - max(x0, left), min(y1, region.bottom) - max(y0, top)]
        enough = min(sides) > 0 and sides[0] * sides[1] >= np.float32(VISIBLE) * (x1 - x0) * (y1 - y0)
        if enough and bool((window == number).any()):
            expected.append(number)
    assert cut["labels"].tolist() == expected
    assert cut["image_id"] == 9
    assert cut["iscrowd"].tolist() == [number % 2 for number in expected]
    assert tuple(cut["masks"].shape) == (len(expected), *region.size)
    for number, mask, box, points in zip(expected, cut["masks"], cut["boxes"], cut["keypoints"], strict=True):
        assert torch.equal(mask.bool().as_subclass(Tensor), window == number)
        assert box.tolist() == tight(mask)
        whole = target["keypoints"][target["labels"].tolist().index(number)].as_subclass(Tensor)
        for (x, y, _), after in zip(whole.tolist(), points.tolist(), strict=True):
            inside = left <= x <= region.right and top <= y <= region.bottom
            assert after == ([x - left, y - top, 2] if inside else [0, 0, 0])
    assert cut["boxes"].canvas_size == cut["keypoints"].canvas_size == region.size


@given(RECTANGLES, st.integers(0, 2**32))
def test_an_image_that_is_not_larger_is_whole(rectangles: Any, seed: int) -> None:
    sample, _ = labelled(40, 50, rectangles)
    with seeded(seed):
        image, target = random_crop(sample, 50)
    assert torch.equal(image, sample[0])
    assert all(target[key] is value for key, value in sample[1].items())


@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(1, 70), st.tuples(*[st.floats(0, 1)] * 4), st.integers(0, 2**32)
)
def test_regions_are_those_of_tiles_in_size_and_show_the_object(
    height: int, width: int, side: int, shares: Any, seed: int
) -> None:
    x0, x1 = sorted(share * width for share in shares[:2])
    y0, y1 = sorted(share * height for share in shares[2:])
    boxes = torch.tensor([[x0, y0, x1, y1]])
    with pytest.MonkeyPatch.context() as patch, seeded(seed):
        patch.setattr("vovnet.detection.data.cropping.ON_OBJECT", 1.0)
        region = drawn_region(boxes, (height, width), side)
    assert region.size == Tiling(max(side, 32)).regions(*(min(one, side) for one in (height, width)))[0].size
    assert 0 <= region.top < region.bottom <= height
    assert 0 <= region.left < region.right <= width
    for low, high, start, end in ((x0, x1, region.left, region.right), (y0, y1, region.top, region.bottom)):
        if np.ceil(high) - np.floor(low) <= side:
            assert start <= np.float32(low)
            assert np.float32(high) <= end
        else:  # the object fills it, but for the pixels that it shares with others
            assert start >= np.floor(low) - 1
            assert end <= np.ceil(high) + 1


def test_crops_show_objects_and_background() -> None:
    boxes = torch.tensor([[10.0, 10, 20, 20], [900, 900, 910, 910]])
    with seeded(1):
        regions = [drawn_region(boxes, (1000, 1000), 100) for _ in range(600)]
    shown = [
        [bool(one.left <= x0 and x1 <= one.right and one.top <= y0 and y1 <= one.bottom) for x0, y0, x1, y1 in boxes]
        for one in regions
    ]
    first, second = (sum(column) / len(regions) for column in zip(*shown, strict=True))
    assert first == pytest.approx(ON_OBJECT / 2, abs=0.08)
    assert second == pytest.approx(ON_OBJECT / 2, abs=0.08)
    assert len(set(regions)) > 300  # the place differs


def test_crowds_are_not_looked_for() -> None:
    sample, _ = labelled(40, 50, [(2, 2, 4, 4), (40, 30, 4, 4)])  # the first is a crowd
    with pytest.MonkeyPatch.context() as patch, seeded(0):
        patch.setattr("vovnet.detection.data.cropping.ON_OBJECT", 1.0)
        for _ in range(20):
            assert random_crop(sample, 12)[1]["labels"].tolist() == [2]


@pytest.mark.parametrize("size", [(900, 700), (300, 900), (256, 256)])
def test_a_crop_is_resized_as_a_tile(size: tuple[int, int]) -> None:
    """The resize in training and the detector's own make the same of a crop and of the tile of the same place."""
    recipe = DataRecipe(train_min_sizes=[320], train_max_size=400, flip=0.0)
    image = torch.zeros(3, *size, dtype=torch.uint8)
    boxes = tv_tensors.BoundingBoxes(torch.zeros(0, 4), format="XYXY", canvas_size=size)
    target = {"boxes": boxes, "labels": torch.zeros(0, dtype=torch.int64)}
    tile = Tiling(256).regions(*size)[0]
    crop, _ = train_transforms(recipe)(*cropped((tv_tensors.Image(image), target), tile))
    detector = GeneralizedRCNNTransform(320, 400, [0.0] * 3, [1.0] * 3)
    part = image[:, tile.top : tile.bottom, tile.left : tile.right].float()
    assert tuple(crop.shape[1:]) == detector([part])[0].image_sizes[0]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> DataSource:
    """COCO JSON with a wide image, which crops cut, and a small high one."""
    folder = tmp_path_factory.mktemp("large")
    images, annotations = [], []
    for number, (height, width) in enumerate([(96, 128), (40, 24)], start=1):
        rectangles = [(5 * one, 4 * one, 6, 8) for one in range(4)] + [(18, 20, 6, 18)]
        (image, target), _ = labelled(height, width, [*rectangles, *([(100, 60, 20, 30)] if width > 100 else [])])
        Image.fromarray(image.numpy().transpose(1, 2, 0)).save(folder / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": height, "width": width})
        for box, counts in zip(
            target["boxes"].tolist(), encode_masks(target["masks"].as_subclass(Tensor)), strict=True
        ):
            x0, y0, x1, y1 = box
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
            shape = {"size": [height, width], "counts": counts.decode()}
            annotations.append({**entry, "bbox": [x0, y0, x1 - x0, y1 - y0], "segmentation": shape, "area": 1.0})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "thing"}]}
    (folder / "data.json").write_text(json.dumps(content))
    return DataSource(str(folder), str(folder / "data.json"))


def assert_equal(one: Sample, other: Sample) -> None:
    assert torch.equal(one[0], other[0])
    assert one[1].keys() == other[1].keys()
    for key, value in one[1].items():
        assert torch.equal(value, other[1][key]) if isinstance(value, Tensor) else value == other[1][key]


@pytest.mark.parametrize("part", [lambda data: data, lambda data: torch.utils.data.Subset(data, [1, 0])])
def test_masks_of_files_are_drawn_in_the_crop_alone(source: DataSource, part: Any) -> None:
    dataset = CocoDataset([source], masks=True, training=True)
    whole = checked(part(dataset), needs_masks=True)
    crops = whole.with_crops(32)
    for index in range(2):
        for seed in range(5):
            with seeded(seed):
                found = crops[index]
            with seeded(seed):
                expected = random_crop(whole[index], 32)
            assert_equal(found, expected)
    assert "masks" in dataset[0][1]  # the dataset itself is as before


def test_sizes_are_those_of_the_crops(source: DataSource) -> None:
    dataset = checked(CocoDataset([source], masks=False, training=True))
    assert aspect_groups(dataset) == [0, 1]
    crops = dataset.with_crops(32)
    assert aspect_groups(crops) == [1, 1]
    sizes = crops.object_sizes()
    assert sizes is not None
    assert sizes.shapes.tolist() == [[32, 32], [32, 24]]
    assert sizes.boxes.max() <= 32
    assert dataset.object_sizes().shapes.tolist() == [[96, 128], [40, 24]]  # type: ignore[union-attr]
    assert crops.with_crops(32) is crops


@pytest.mark.parametrize("mixed", [{}, {"mosaic": 0.5, "copy_paste": 0.5}])
def test_a_loader_crops_the_same_in_any_process(source: DataSource, mixed: dict[str, Any]) -> None:
    dataset = CocoDataset([source], masks=True, training=True)
    found = []
    for workers, start in ((0, 0), (1, 0), (0, 2)):
        data = DataRecipe(crop=32, train_min_sizes=[48], train_max_size=48, workers=workers, **mixed)
        loader = training_loader(dataset, data, batch_size=2, seed=3, start=start, stop=5)
        found.append(list(islice(loader, 5)))
        loader.close()
    for here, there in (*zip(found[0], found[1], strict=True), *zip(found[0][2:], found[2], strict=True)):
        for one, other in zip(zip(*here, strict=True), zip(*there, strict=True), strict=True):
            assert_equal(one, other)
    images = [image for images, _ in found[0] for image in images]
    assert {max(image.shape[1:]) for image in images} == {48}
    assert sum(len(target["boxes"]) for _, targets in found[0] for target in targets)


def test_tiles_of_a_sample_are_those_of_prediction() -> None:
    sample, numbers = labelled(70, 90, [(30, 30, 20, 20)])
    tiles = list(tiles_of(sample, 40))
    regions = Tiling(40).regions(70, 90)
    assert [tuple(image.shape[1:]) for image, _ in tiles] == [one.size for one in regions]
    for (image, _), one in zip(tiles, regions, strict=True):
        assert torch.equal(image[0].as_subclass(Tensor).long(), numbers[one.top : one.bottom, one.left : one.right])
