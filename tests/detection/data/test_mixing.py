"""Mosaics and pasted objects: by hand, for any sizes and objects, and the same for the same seed."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes

from vovnet.detection.config.data import DataRecipe
from vovnet.detection.data.loader import training_loader
from vovnet.detection.data.mixing import ClosingStream, MixedDataset, drawn_mosaic, mosaic, pasted
from vovnet.detection.data.sampler import BatchStream
from vovnet.detection.data.samples import Sample
from vovnet.detection.data.transforms import TransformedDataset, seeded, train_transforms
from vovnet.errors import InputError


def sample(height: int, width: int, corners: list[list[int]], shade: int = 0, *, masks: bool = True) -> Sample:
    """An image of one shade whose objects are filled rectangles; object k has the label k + 1."""
    image = torch.full((3, height, width), shade, dtype=torch.uint8)
    shapes = torch.zeros(len(corners), height, width, dtype=torch.uint8)
    for number, (x0, y0, x1, y1) in enumerate(corners):
        image[:, y0:y1, x0:x1] = 10 * shade + number + 1
        shapes[number, y0:y1, x0:x1] = 1
    boxes = torch.tensor(corners, dtype=torch.float32).reshape(-1, 4)
    target: dict[str, Any] = {
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
        "labels": torch.arange(1, len(corners) + 1),
        "image_id": shade,
        "area": torch.ones(len(corners)),
    }
    if masks:
        target["masks"] = tv_tensors.Mask(shapes)
    return tv_tensors.Image(image), target


def assert_sound(found: Sample, size: tuple[int, int], tolerance: float = 0) -> None:
    """Boxes lie in the image, are not degenerate, and fit their masks; all entries have a row for each object."""
    image, target = found
    boxes = target["boxes"].as_subclass(Tensor)
    assert tuple(image.shape[1:]) == size == target["boxes"].canvas_size
    assert {len(target[key]) for key in ("boxes", "labels", "masks", "area") if key in target} == {len(boxes)}
    assert target["labels"].dtype == torch.int64
    if len(boxes):
        assert boxes.min() >= 0
        assert (boxes[:, 2] <= size[1]).all()
        assert (boxes[:, 3] <= size[0]).all()
        assert (boxes[:, 2:] - boxes[:, :2]).min() >= 1
    if "masks" in target:
        masks = target["masks"].as_subclass(Tensor)
        assert tuple(masks.shape[1:]) == size
        if len(boxes):
            assert masks.flatten(1).any(dim=1).all()
            around = masks_to_boxes(masks) + torch.tensor([0, 0, 1, 1])
            assert (around - boxes).abs().max() <= tolerance


@st.composite
def samples(draw: st.DrawFn, masks: bool = True) -> Sample:
    height, width = draw(st.integers(8, 30)), draw(st.integers(8, 30))
    sides = st.lists(st.integers(0, height), min_size=2, max_size=2, unique=True).map(sorted)
    lengths = st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True).map(sorted)
    corners = draw(st.lists(st.tuples(lengths, sides), max_size=4))
    return sample(height, width, [[x0, y0, x1, y1] for (x0, x1), (y0, y1) in corners], masks=masks)


def test_a_mosaic_by_hand() -> None:
    """Four images of 8x10 around row 4, column 6: each part is a window, and boxes move with their pixels."""
    parts = [
        sample(8, 10, [[1, 1, 4, 3]], 1),  # window from (2, 3): nothing of it is left but a pixel of six, column 3
        sample(8, 10, [[2, 2, 8, 8]], 2),  # window (0, 2), 4 high, 4 wide: the box is cut on two sides
        sample(3, 4, [[0, 0, 2, 2]], 3),  # smaller than its part of 4x6: it touches the centre
        sample(8, 10, [[0, 0, 1, 1], [6, 4, 10, 8]], 4),  # window (4, 6): the first is outside, the second is all of it
    ]
    image, target = mosaic(parts, (4, 6), [(2, 3), (0, 2), (0, 0), (4, 6)])
    assert_sound((image, target), (8, 10))
    expected = torch.full((8, 10), 114, dtype=torch.uint8)
    expected[:4, :6] = parts[0][0][0, 2:6, 3:9]
    expected[:4, 6:] = parts[1][0][0, 0:4, 2:6]
    expected[4:7, 2:6] = parts[2][0][0]
    expected[4:, 6:] = parts[3][0][0, 4:8, 6:10]
    assert torch.equal(image.as_subclass(Tensor), expected.expand(3, 8, 10))
    assert target["boxes"].tolist() == [[0, 0, 1, 1], [6, 2, 10, 4], [2, 4, 4, 6], [6, 4, 10, 8]]
    assert target["labels"].tolist() == [1, 1, 1, 2]
    assert target["image_id"] == 1
    for box, mask in zip(target["boxes"].tolist(), target["masks"], strict=True):
        x0, y0, x1, y1 = map(int, box)
        assert mask.sum() == mask[y0:y1, x0:x1].sum() == (x1 - x0) * (y1 - y0)


def test_slivers_are_removed() -> None:
    """Of a box of 20 pixels, 2 columns are a tenth and stay; 1 is removed."""
    empty = sample(40, 40, [])
    whole = sample(40, 40, [[0, 0, 20, 10]])
    for column, left in ((18, [[0, 0, 2, 10]]), (19, [])):
        _, target = mosaic([whole, empty, empty, empty], (20, 20), [(0, column), (0, 0), (0, 0), (0, 0)])
        assert target["boxes"].tolist() == left


@given(st.lists(samples(), min_size=4, max_size=4), st.integers(0, 2**32))
def test_any_mosaic_is_sound(parts: list[Sample], seed: int) -> None:
    with seeded(seed):
        found = drawn_mosaic(parts)
    size = (parts[0][0].shape[1], parts[0][0].shape[2])
    assert_sound(found, size)
    for label, mask in zip(found[1]["labels"].tolist(), found[1]["masks"], strict=True):
        # Where an object's mask is, the image has its colour or that of an object drawn over it.
        assert (found[0][0][mask.bool()] >= label).all()


@given(st.lists(samples(masks=False), min_size=4, max_size=4), st.integers(0, 2**32))
def test_any_mosaic_of_boxes_is_sound(parts: list[Sample], seed: int) -> None:
    with seeded(seed):
        found = drawn_mosaic(parts)
    assert "masks" not in found[1]
    assert_sound(found, (parts[0][0].shape[1], parts[0][0].shape[2]))


def test_pasting_by_hand() -> None:
    base = sample(10, 12, [[0, 0, 4, 4], [6, 6, 12, 10], [8, 0, 10, 2]], 5)
    source = sample(8, 20, [[2, 2, 8, 8], [8, 0, 12, 3], [10, 5, 20, 8], [15, 0, 19, 4]], 1)
    image, target = pasted(base, source, torch.tensor([True, True, True, True]))
    assert_sound((image, target), (10, 12))
    # The first loses its corner but keeps its box, the second what two objects cover, the third all; the fourth of the
    # source lies outside of the base, and the third is cut at its border.
    assert target["boxes"].tolist() == [[0, 0, 4, 4], [6, 6, 12, 10], [2, 2, 8, 8], [8, 0, 12, 3], [10, 5, 12, 8]]
    assert target["labels"].tolist() == [1, 2, 1, 2, 3]
    expected = base[0].clone()
    for x0, y0, x1, y1 in ([2, 2, 8, 8], [8, 0, 12, 3], [10, 5, 12, 8]):
        expected[:, y0:y1, x0:x1] = source[0][:, y0:y1, x0:x1]
    assert torch.equal(image, expected)
    assert int(target["masks"][0].sum()) == 16 - 4
    assert int(target["masks"].sum(dim=0).max()) == 1  # masks of rectangles that cover each other are disjoint then


def test_nothing_to_paste() -> None:
    base = sample(10, 12, [[0, 0, 4, 4]])
    for source, chosen in ((sample(8, 8, [[1, 1, 5, 5]]), [False]), (sample(8, 8, []), [])):
        image, target = pasted(base, source, torch.tensor(chosen, dtype=torch.bool))
        assert torch.equal(image, base[0])
        assert target["boxes"].tolist() == [[0, 0, 4, 4]]


@given(samples(), samples(), st.lists(st.booleans(), min_size=4, max_size=4))
def test_any_pasting_is_sound(base: Sample, source: Sample, chosen: list[bool]) -> None:
    before = base[0].clone(), base[1]["masks"].clone()
    found = pasted(base, source, torch.tensor(chosen[: len(source[1]["boxes"])], dtype=torch.bool))
    assert_sound(found, (base[0].shape[1], base[0].shape[2]))
    covered = (found[0] != before[0]).any(dim=0)
    assert (found[1]["masks"].any(dim=0) >= covered).all()  # whatever changed belongs to an object
    assert torch.equal(base[0], before[0])  # the inputs are left alone
    assert torch.equal(base[1]["masks"], before[1])


class Shapes:
    """Four images of different sizes and shades, all wide."""

    categories = ({"id": 1, "name": "a"}, {"id": 2, "name": "b"})
    masks = True

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return sample(30 + index, 40 + index, [[2, 3, 20, 18], [21, 10, 38, 29]], 3 + index, masks=self.masks)

    def image_size(self, index: int) -> tuple[int, int]:
        return 30 + index, 40 + index


class Boxes(Shapes):
    masks = False


def recipe(**fields: Any) -> DataRecipe:
    settings: dict[str, Any] = {"train_min_sizes": [28, 36], "train_max_size": 60, "workers": 0, "vertical_flip": 0.5}
    return DataRecipe(**settings | fields)


def shades(image: Tensor) -> int:
    """How many of the images are in a mixed one: the shade of the ground tells them apart, but for blurred borders."""
    return sum(bool((image == 3 + index).float().mean() > 0.02) for index in range(4))


def test_seeds_decide_everything() -> None:
    transforms = train_transforms(recipe(colour=0.0))
    data = MixedDataset(Shapes(), transforms, mosaic=0.7, copy_paste=0.7)
    plain = TransformedDataset(Shapes(), transforms)
    kinds = set()
    for seed in range(30):
        one, again, closed = data[1, seed], data[1, seed, True], data[1, seed, False]
        assert torch.equal(one[0], again[0])
        assert torch.equal(one[1]["boxes"], again[1]["boxes"])
        assert one[1]["image_id"] == 4
        assert_sound(one, tuple(plain[1, seed][0].shape[1:]), tolerance=2)
        assert shades(closed[0]) == 1  # pasted objects bring no ground
        kinds.add((shades(one[0]) > 1, len(closed[1]["boxes"]) > 2))
    assert kinds == {(False, False), (False, True), (True, False), (True, True)}


def test_off_is_what_it_was() -> None:
    transforms = train_transforms(recipe(colour=0.3))
    mixed, plain = MixedDataset(Shapes(), transforms, 0.0, 0.0), TransformedDataset(Shapes(), transforms)
    for seed in range(5):
        assert torch.equal(mixed[2, seed][0], plain[2, seed][0])


@pytest.mark.parametrize("workers", [0, 2])
def test_mosaics_close_for_the_last_part(workers: int) -> None:
    data = recipe(mosaic=1.0, mosaic_off=0.3, workers=workers)
    options: dict[str, Any] = {"batch_size": 1, "seed": 5, "stop": 10}
    batches = list(training_loader(Boxes(), data, **options))
    assert [shades(images[0]) > 1 for images, _ in batches] == [True] * 7 + [False] * 3
    resumed = list(training_loader(Boxes(), data, start=5, **options))
    assert len(resumed) == 5
    for (one, _), (other, _) in zip(batches[5:], resumed, strict=True):
        assert torch.equal(one[0], other[0])


def test_mosaics_without_an_end() -> None:
    stream = BatchStream([0] * 4, 1, seed=0, start=3)
    assert all(key[2] for batch in islice(ClosingStream(stream, None), 20) for key in batch)
    assert [key[2] for batch in islice(ClosingStream(stream, 5), 4) for key in batch] == [True, True, False, False]


def test_pasting_needs_masks() -> None:
    with pytest.raises(InputError, match=r"data\.copy_paste.*masks"):
        next(training_loader(Boxes(), recipe(copy_paste=1.0), batch_size=1, seed=0))


def test_what_cannot_be_mixed_is_refused() -> None:
    def with_points(image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        return image, target | {"keypoints": torch.zeros(len(target["boxes"]), 17, 3)}

    with pytest.raises(InputError, match="keypoints"):
        MixedDataset(Boxes(), with_points, 0.5, 0.0)[0, 0]
