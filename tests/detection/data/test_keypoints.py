"""Keypoints from the file to the target, and moved as their image is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from vovnet.detection.config.data import DataRecipe
from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.data.datasets import checked
from vovnet.detection.data.keypoints import Keypoints
from vovnet.detection.data.samples import check_sample
from vovnet.detection.data.synthetic import CATEGORIES, CORNERS, draw_image
from vovnet.detection.data.transforms import TransformedDataset, train_transforms
from vovnet.detection.data.validation import check_data
from vovnet.errors import InputError

Write = Callable[..., DataSource]

NAMES = ["nose", "left_eye", "right_eye"]
PERSON = {"id": 7, "name": "cat", "keypoints": NAMES, "skeleton": [[1, 2], [1, 3]]}
DOG = {"id": 90, "name": "dog"}
FLAT = [20.0, 12.0, 2, 15.0, 11.0, 1, 25.5, 11.0, 2]


def points(*fields: Any) -> dict[str, Any]:
    return {"keypoints": list(fields), "num_keypoints": sum(v > 0 for v in fields[2::3])}


def test_targets_are_torchvisions(write: Write, entries: Any) -> None:
    annotation, _ = entries
    found = [annotation(1, 1, **points(*FLAT)), annotation(2, 1, category_id=90), annotation(3, 2, keypoints=[0] * 9)]
    source = write(found, categories=[PERSON, DOG])
    dataset = CocoDataset([source], masks=False, training=True, keypoints=True)
    target = dataset[0][1]
    assert target["keypoints"].dtype == torch.float32
    expected = torch.tensor(FLAT).reshape(3, 3)
    assert torch.equal(target["keypoints"], torch.stack((expected, torch.zeros(3, 3))))
    assert torch.equal(dataset[1][1]["keypoints"], torch.zeros(1, 3, 3))
    assert dataset[2][1]["keypoints"].shape == (0, 3, 3)
    assert dataset.categories == [PERSON, DOG]
    # A detector of boxes does not see them.
    boxes = CocoDataset([source], masks=False, training=True)
    assert "keypoints" not in boxes[0][1]
    assert boxes.categories == [{"id": 7, "name": "cat"}, DOG]


def test_the_truth_of_an_evaluation(write: Write, entries: Any) -> None:
    annotation, _ = entries
    source = write([annotation(1, 1, **points(*FLAT)), annotation(2, 2)], categories=[PERSON])
    truth = CocoDataset([source], masks=False, training=False, keypoints=True).ground_truth
    assert truth is not None
    assert [one["keypoints"] for one in truth["annotations"]] == [FLAT, [0] * 9]
    assert [one["num_keypoints"] for one in truth["annotations"]] == [3, 0]
    # Data without any is evaluated on boxes.
    plain = CocoDataset([write(name="plain")], masks=False, training=False, keypoints=True)
    assert plain.ground_truth is not None
    assert "keypoints" not in plain.ground_truth["annotations"][0]


@pytest.mark.parametrize(
    ("fields", "kind", "left"),
    [
        ({"keypoints": FLAT[:-3]}, "bad_keypoints", 0),
        ({"keypoints": [*FLAT[:-1], "2"]}, "bad_keypoints", 0),
        ({"keypoints": [*FLAT[:-1], float("nan")]}, "bad_keypoints", 0),
        ({"keypoints": {"nose": 1}}, "bad_keypoints", 0),
        ({"keypoints": [*FLAT[:-1], 3]}, "bad_visibility", 2),
        ({"keypoints": [*FLAT[:-1], 0.5]}, "bad_visibility", 2),
        ({"keypoints": [*FLAT[:-3], 61.0, 11.0, 2]}, "keypoint_outside", 2),
        ({"keypoints": [*FLAT[:-3], 25.0, -0.6, 1]}, "keypoint_outside", 2),
        ({"keypoints": [*FLAT[:-3], 60.4, 40.4, 1]}, None, 3),  # by rounding
        ({"keypoints": [*FLAT[:-3], 99.0, 99.0, 0]}, None, 2),  # not labelled
        ({"keypoints": FLAT, "num_keypoints": 2}, "num_keypoints", 3),
        ({"keypoints": FLAT, "num_keypoints": "3"}, "num_keypoints", 3),
        ({"keypoints": None}, None, 0),
    ],
)
def test_bad_keypoints(write: Write, entries: Any, fields: dict[str, Any], kind: str | None, left: int) -> None:
    annotation, _ = entries
    source = write([annotation(1, 1, **points(*FLAT)), annotation(2, 2, **fields)], categories=[PERSON])
    report = check_data(source.images, source.annotations)
    assert report.problems == ({} if kind is None else {kind: [2]})
    assert report.keypoints == 1 + bool(left)
    target = CocoDataset([source], masks=False, training=True, keypoints=True)[1][1]
    assert len(target["boxes"]) == 1  # the object stays
    assert int((target["keypoints"][..., 2] > 0).sum()) == left
    inside = (target["keypoints"][..., :2] >= 0) & (target["keypoints"][..., :2] <= torch.tensor([60, 40]))
    assert bool(inside.all())


@pytest.mark.parametrize(
    ("categories", "problems"),
    [
        ([{**PERSON, "keypoints": None, "skeleton": None}], {"no_keypoint_names": [7]}),
        ([{**PERSON, "keypoints": ["a", "a", "b"]}], {"bad_keypoint_names": [7]}),
        ([{**PERSON, "skeleton": [[0, 1]]}], {"bad_keypoint_names": [7]}),
        ([{**PERSON, "skeleton": [[1, 4]]}], {"bad_keypoint_names": [7]}),
        ([PERSON, {**DOG, "keypoints": ["tail"]}], {"keypoint_counts": [90]}),
    ],
)
def test_bad_names(write: Write, entries: Any, categories: list[Any], problems: dict[str, list[int]]) -> None:
    annotation, _ = entries
    source = write([annotation(1, 1, **points(*FLAT))], categories=categories)
    report = check_data(source.images, source.annotations)
    assert report.problems == problems
    if "keypoint_counts" in problems:
        with pytest.raises(InputError, match=r"different numbers of keypoints \(cat 3, dog 1\)"):
            CocoDataset([source], masks=False, training=True, keypoints=True)
    else:
        dataset = CocoDataset([source], masks=False, training=True, keypoints=True)
        assert len(dataset.categories[0]["keypoints"]) == 3
        assert dataset[0][1]["keypoints"].shape == (1, 3, 3)


def test_data_without_any(write: Write, entries: Any) -> None:
    annotation, _ = entries
    for number, fields in enumerate(({}, {"keypoints": [0] * 9})):
        source = write([annotation(1, 1, **fields)], categories=[PERSON], name=f"data{number}")
        with pytest.raises(InputError, match="no object has a labelled keypoint"):
            CocoDataset([source], masks=False, training=True, keypoints=True)
    assert check_data(source.images, source.annotations).problems == {"no_usable_keypoint": [source.annotations]}


def test_images_with_few_are_left_out(write: Write, entries: Any) -> None:
    annotation, _ = entries
    few = points(*FLAT[:6], 0, 0, 0)
    source = write([annotation(1, 1, **points(*FLAT)), annotation(2, 2, **few)], categories=[PERSON])
    for least, images in ((0, [1, 2, 3]), (2, [1, 2]), (3, [1])):
        dataset = CocoDataset([source], masks=False, training=True, keypoints=True, min_keypoints=least)
        assert [dataset.image_id(index) for index in range(len(dataset))] == images
    assert len(CocoDataset([source], masks=False, training=False, keypoints=True, min_keypoints=3)) == 3


def test_files_must_agree(write: Write, entries: Any) -> None:
    annotation, _ = entries
    one = write([annotation(1, 1, **points(*FLAT))], categories=[PERSON], name="one")
    other = write(
        [annotation(1, 1, **points(*FLAT))], categories=[{**PERSON, "keypoints": ["a", "b", "c"]}], name="two"
    )
    with pytest.raises(InputError, match="joined files must agree"):
        CocoDataset([one, other], masks=False, training=True, keypoints=True)
    with pytest.raises(InputError, match="7 has keypoints"):
        CocoDataset([other], masks=False, training=False, keypoints=True, categories=[PERSON])


class Own:
    """A dataset of the user's own."""

    categories = ({"id": 1, "name": "cat", "keypoints": NAMES},)

    def __init__(self, **target: Any) -> None:
        self.target = target

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        target = {"boxes": [[10, 10, 30, 30]], "labels": [1], **self.target}
        return torch.zeros(3, 40, 60, dtype=torch.uint8), target


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ({}, "keypoints: missing"),
        ({"keypoints": [[[1, 2, 2]]]}, r"expected \(1, 3, 3\)"),
        ({"keypoints": [[[1, 2, 2], [1, 2, 2], [1, 2, 7]]]}, "v 0"),
        ({"keypoints": [[[1, 2, 2], [1, float("inf"), 2], [1, 2, 1]]]}, "finite"),
    ],
)
def test_samples_of_the_users_own(target: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        checked(Own(**target), needs_keypoints=True)[0]


def test_sound_samples_of_the_users_own() -> None:
    given_points = [[[12, 12, 2], [70, 12, 2], [28, 30, 1]]]
    found = checked(Own(keypoints=given_points), needs_keypoints=True)[0][1]["keypoints"]
    assert found.tolist() == [[[12, 12, 2], [0, 0, 0], [28, 30, 1]]]  # one was outside of the image
    plain = Own(keypoints=given_points)
    plain.categories = ({"id": 1, "name": "cat"},)  # type: ignore[assignment]
    assert "keypoints" not in checked(plain)[0][1]
    with pytest.raises(InputError, match="no category names its keypoints"):
        checked(plain, needs_keypoints=True)


# A keypoint is marked in the image by a blob of its own colour, so that any transform moves both.
COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255]], dtype=torch.uint8)


def marked(height: int = 60, width: int = 90) -> tuple[tv_tensors.Image, dict[str, Any]]:
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    places = torch.tensor([[[30.0, 20.0, 2], [20.0, 40.0, 1], [70.0, 44.0, 2]]])
    for colour, (x, y, _) in zip(COLOURS, places[0].tolist(), strict=True):
        image[:, int(y) - 4 : int(y) + 4, int(x) - 4 : int(x) + 4] = colour[:, None, None]
    target = {"boxes": [[10, 10, 80, 55]], "labels": [1], "keypoints": places}
    return check_sample((image, target), 0, 1, mirror=(0, 2, 1))


def centres(image: Tensor, colours: Tensor) -> list[list[float] | None]:
    """Return the centre x, y of the blob of each colour, None if it is not in the image."""
    found: list[list[float] | None] = []
    for colour in colours:
        rows, columns = torch.nonzero((image == colour[:, None, None]).all(dim=0)).unbind(dim=1)
        found.append([float(columns.float().mean()) + 0.5, float(rows.float().mean()) + 0.5] if len(rows) else None)
    return found


@pytest.mark.parametrize(
    ("fields", "mirrors"),
    [
        ({}, 0),
        ({"flip": 1.0}, 1),
        ({"vertical_flip": 1.0}, 1),
        ({"flip": 1.0, "vertical_flip": 1.0}, 2),
        ({"train_min_sizes": [90], "train_max_size": 400}, 0),
        ({"flip": 1.0, "train_min_sizes": [31], "train_max_size": 400}, 1),
    ],
)
def test_points_stay_on_what_they_mark(fields: dict[str, Any], mirrors: int) -> None:
    recipe = DataRecipe(**{"flip": 0.0, "train_min_sizes": [60], "train_max_size": 90, **fields})
    image, target = train_transforms(recipe)(*marked())
    # In a mirror image, the left eye lies where the right one was.
    order = [0, 2, 1] if mirrors % 2 else [0, 1, 2]
    expected = centres(image.as_subclass(Tensor), COLOURS[order])
    np.testing.assert_allclose(target["keypoints"][0, :, :2], np.array(expected, dtype=float), atol=0.6)
    assert target["keypoints"][0, :, 2].tolist() == [[2.0, 1.0, 2.0][position] for position in order]


@given(st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_points_that_leave_the_image(seed: int) -> None:
    """Scale jitter crops: a point is labelled exactly if its place is in the image, and then on what it marks."""
    recipe = DataRecipe(flip=0.0, scale_jitter=[0.5, 3.0], train_max_size=90)
    torch.manual_seed(seed)
    image, target = train_transforms(recipe)(*marked())
    if not len(target["keypoints"]):
        return
    height, width = image.shape[1:]
    for colour, (x, y, v) in zip(COLOURS, target["keypoints"][0].tolist(), strict=True):
        if v:
            assert 0 <= x <= width
            assert 0 <= y <= height
            around = image[:, max(0, int(y) - 1) : int(y) + 2, max(0, int(x) - 1) : int(x) + 2]
            assert bool((around.argmax(dim=0) == int(colour.argmax())).any())
        else:
            assert (x, y) == (0, 0)


@pytest.mark.parametrize(
    "transform",
    [
        v2.RandomAffine(20, translate=(0.1, 0.1), scale=(0.8, 1.2)),
        v2.RandomRotation(30),
        v2.Pad(7),
        v2.CenterCrop((40, 70)),
        v2.RandomResizedCrop((80, 70), scale=(0.7, 1.0)),
    ],
)
def test_torchvisions_other_transforms_move_them_as_its_own_keypoints(transform: v2.Transform) -> None:
    image, target = marked()
    plain = target["keypoints"].as_subclass(Tensor)
    theirs = tv_tensors.KeyPoints(plain[..., :2], canvas_size=(60, 90))
    for seed in range(5):
        torch.manual_seed(seed)
        found = transform({"image": image, "points": target["keypoints"]})
        torch.manual_seed(seed)
        expected = transform({"image": image, "points": theirs})
        assert isinstance(found["points"], Keypoints)
        assert found["points"].canvas_size == tuple(found["image"].shape[1:])
        assert torch.equal(found["points"].as_subclass(Tensor)[..., :2], expected["points"].as_subclass(Tensor))
        assert torch.equal(found["points"].as_subclass(Tensor)[..., 2], plain[..., 2])


def test_flips_are_those_of_torchvisions_references() -> None:
    """x becomes width - x, as that of boxes does."""
    found = functional.horizontal_flip(Keypoints.of(torch.tensor([[[3.0, 4.0, 2.0]]]), (20, 50), (0,)))
    assert found.as_subclass(Tensor).tolist() == [[[47.0, 4.0, 2.0]]]


def test_seeds_repeat_samples() -> None:
    dataset = TransformedDataset(
        Own(keypoints=[[[12, 12, 2], [20, 12, 2], [28, 30, 1]]]), train_transforms(DataRecipe())
    )
    one, other = dataset[0, 3][1], dataset[0, 3][1]
    assert torch.equal(one["keypoints"], other["keypoints"])


def test_corners_of_shapes() -> None:
    """The highest corner is first and the others follow clockwise; those on whole shapes are visible."""
    counted = 0
    for seed in range(40):
        _, annotations = draw_image(np.random.default_rng(seed), (128, 128), 3, keypoints=True)
        for one in annotations:
            if CATEGORIES[one["category_id"] - 1]["name"] == "circle":
                assert "keypoints" not in one
                continue
            table = np.array(one["keypoints"]).reshape(-1, 3)
            assert len(table) == len(CORNERS)
            assert one["num_keypoints"] == (table[:, 2] > 0).sum()
            corners = table[table[:, 2] > 0]
            assert corners[:, 1].argmin() == 0
            x, y = corners[:, 0], corners[:, 1]
            assert (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() > 0  # clockwise, as y points down
            if isinstance(one["segmentation"], list):
                flat = one["segmentation"][0]
                outline = set(zip(flat[0::2], flat[1::2], strict=True))
                assert {(float(a), float(b)) for a, b in corners[:, :2]} == outline
                assert (corners[:, 2] == 2).all()
            counted += 1
    assert counted > 30
