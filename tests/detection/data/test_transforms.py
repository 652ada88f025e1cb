"""Transforms keep image, boxes and masks together, and draw the same for the same seed."""

import random
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import masks_to_boxes

from vovnet.detection.config.data import DataRecipe
from vovnet.detection.data.samples import check_sample
from vovnet.detection.data.transforms import TransformedDataset, seeded, train_transforms

HEIGHT, WIDTH = 60, 100


def sample(height: int = HEIGHT, width: int = WIDTH) -> tuple[tv_tensors.Image, dict[str, Any]]:
    """Two bright rectangles on black, whose boxes fit their masks."""
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    masks = torch.zeros(2, height, width, dtype=torch.uint8)
    corners = torch.tensor([[4, 6, 30, 26], [50, 20, 90, 54]])
    for mask, (x0, y0, x1, y1) in zip(masks, corners.tolist(), strict=True):
        mask[y0:y1, x0:x1] = 1
        image[:, y0:y1, x0:x1] = 200
    target = {
        "boxes": tv_tensors.BoundingBoxes(corners.float(), format="XYXY", canvas_size=(height, width)),
        "labels": torch.tensor([1, 2]),
        "image_id": 5,
        "masks": tv_tensors.Mask(masks),
        "iscrowd": torch.tensor([0, 0]),
        "area": torch.tensor([520.0, 1360.0]),
    }
    return tv_tensors.Image(image), target


def recipe(**fields: Any) -> DataRecipe:
    return DataRecipe(**{"train_min_sizes": [HEIGHT], "train_max_size": WIDTH, "flip": 0.0, **fields})


def assert_fits(image: Tensor, target: dict[str, Any], tolerance: float) -> None:
    """Boxes lie around their masks, masks on the bright pixels, and all lists have the same length."""
    assert target["boxes"].canvas_size == tuple(image.shape[1:]) == tuple(target["masks"].shape[1:])
    around = masks_to_boxes(target["masks"]) + torch.tensor([0, 0, 1, 1])
    assert (around - target["boxes"]).abs().max() <= tolerance
    assert {len(target[key]) for key in ("boxes", "labels", "masks", "iscrowd", "area")} == {len(target["boxes"])}
    bright = image[0] > 100
    assert (bright != target["masks"].any(dim=0)).float().mean() < 0.05


def test_nothing_to_do() -> None:
    image, target = train_transforms(recipe())(*sample())
    assert torch.equal(image, sample()[0])
    assert torch.equal(target["boxes"], sample()[1]["boxes"])


@pytest.mark.parametrize("which", ["flip", "vertical_flip"])
def test_flipping_twice_is_nothing(which: str) -> None:
    flip = train_transforms(recipe(**{which: 1.0}))
    once, twice = flip(*sample()), flip(*flip(*sample()))
    assert_fits(*once, tolerance=0)
    assert not torch.equal(once[1]["boxes"], sample()[1]["boxes"])
    assert torch.equal(twice[0], sample()[0])
    for key in ("boxes", "masks", "labels"):
        assert torch.equal(twice[1][key], sample()[1][key])


def test_sizes_are_those_of_the_detector() -> None:
    """The detector scales images at test time; what training scales to must look the same."""
    theirs = GeneralizedRCNNTransform(96, 150, [0, 0, 0], [1, 1, 1], size_divisible=1)
    theirs.eval()
    image = tv_tensors.Image(torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8))
    expected = theirs([image.float() / 255])[0].tensors[0]
    found, target = train_transforms(recipe(train_min_sizes=[96], train_max_size=150))(image, sample()[1])
    assert found.shape == expected.shape == (3, 90, 150)
    assert (found.as_subclass(Tensor).float() / 255 - expected).abs().max() < 1.5 / 255
    np.testing.assert_allclose(target["boxes"], sample()[1]["boxes"] * 1.5, atol=1e-4)


def test_short_sides_are_drawn() -> None:
    resize = train_transforms(recipe(train_min_sizes=[30, 45, 60]))
    heights = {resize(*sample())[0].shape[1] for _ in range(40)}
    assert heights == {30, 45, 60}
    for _ in range(5):
        assert_fits(*resize(*sample()), tolerance=1)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 4000), (4000, 1)])
def test_lines_of_pixels(height: int, width: int) -> None:
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    start = check_sample((torch.zeros(3, height, width, dtype=torch.uint8), target), 0, 1)
    image, _ = train_transforms(DataRecipe())(*start)
    assert min(image.shape) >= 1
    assert max(image.shape) <= 1333
    jittered, _ = train_transforms(DataRecipe(scale_jitter=[0.1, 0.1]))(*start)
    assert min(jittered.shape) >= 1


def test_scale_jitter() -> None:
    jitter = train_transforms(recipe(scale_jitter=[0.3, 3.0]))
    shapes = set()
    for seed in range(60):
        with seeded(seed):
            image, target = jitter(*sample())
        shapes.add(tuple(image.shape))
        assert max(image.shape) <= WIDTH
        if len(target["boxes"]):
            assert_fits(image, target, tolerance=2)
            assert target["boxes"].min() >= 0
            assert (target["boxes"][:, 2:] - target["boxes"][:, :2]).min() >= 1
    assert len(shapes) > 20


def test_colour_leaves_shapes_alone() -> None:
    colour = train_transforms(recipe(colour=1.0))
    image, target = colour(*sample())
    assert image.dtype == torch.uint8
    assert torch.equal(target["boxes"], sample()[1]["boxes"])
    assert any(not torch.equal(colour(*sample())[0], sample()[0]) for _ in range(5))


def test_what_vanishes_is_removed() -> None:
    image, target = sample()
    target["boxes"][0] = torch.tensor([10.0, 10, 10.5, 20])
    _, left = train_transforms(recipe())(image, target)
    assert left["labels"].tolist() == [2]
    assert left["area"].tolist() == [1360.0]
    assert left["masks"].shape == (1, HEIGHT, WIDTH)
    assert isinstance(left["masks"], tv_tensors.Mask)
    image, target = sample()
    target["masks"][1] = 0
    assert train_transforms(recipe())(image, target)[1]["labels"].tolist() == [1]
    image, target = sample()
    target["boxes"][0] = torch.tensor([-10.0, -20, 200, float("nan")])
    target["boxes"][1] = torch.tensor([50.0, 20, 190, 54])
    assert train_transforms(recipe())(image, target)[1]["boxes"].tolist() == [[50, 20, 100, 54]]


def test_training_never_sees_crowds() -> None:
    image, target = sample()
    target["iscrowd"] = torch.tensor([1, 0])
    assert train_transforms(recipe())(image, target)[1]["labels"].tolist() == [2]


class Plain:
    """A dataset with plain tensors and random numbers of its own."""

    categories = ({"id": 1, "name": "a"}, {"id": 2, "name": "b"})

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        noise = random.random() + np.random.random() + float(torch.rand(()))
        boxes = torch.tensor([[1.0, 2, 10 + noise, 20]])
        return torch.full((3, 40, 50), index, dtype=torch.uint8), {"boxes": boxes, "labels": torch.tensor([2])}


def test_seeds_decide_everything_and_change_nothing() -> None:
    data = TransformedDataset(Plain(), train_transforms(DataRecipe(train_min_sizes=list(range(30, 90)))))
    assert len(data) == 4
    torch.manual_seed(0)
    random.seed(0)
    before = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist())
    one, two, other = data[2, 7], data[2, 7], data[2, 8]
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert before[2] == np.random.get_state()[1].tolist()
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1]["boxes"], two[1]["boxes"])
    assert not torch.equal(one[1]["boxes"], other[1]["boxes"])
    assert one[1]["image_id"] == 2  # the index, where the dataset has no ids
    assert TransformedDataset(Plain())[1][0].shape == (3, 40, 50)


def test_states_are_restored_after_errors() -> None:
    state = torch.get_rng_state()

    def fail() -> None:
        torch.rand(1)
        raise RuntimeError

    with pytest.raises(RuntimeError), seeded(3):
        fail()
    assert torch.equal(state, torch.get_rng_state())
