"""Transforms of the user's own: what they get, what is accepted of them, and what is refused in one line."""

from __future__ import annotations

import multiprocessing
import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2

from vovnet.detection.data.albumentations_bridge import is_albumentations
from vovnet.detection.data.datasets import checked
from vovnet.detection.data.transforms import TransformedDataset, seeded
from vovnet.detection.data.user_transforms import VariedDataset, check_transforms, load_transforms, name_of
from vovnet.errors import InputError

Changes = Callable[[Tensor, dict[str, Any]], Any]


class Shapes:
    """Images with two rectangles and a crowd, with or without masks."""

    categories = ({"id": 1, "name": "a"}, {"id": 2, "name": "b"})

    def __init__(self, masks: bool = True) -> None:
        self.masks = masks

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        corners = torch.tensor([[4, 6, 30, 26], [50, 20, 90, 54], [0, 0, 100, 60]])
        image = torch.zeros(3, 60, 100, dtype=torch.uint8)
        masks = torch.zeros(3, 60, 100, dtype=torch.uint8)
        for number, (x0, y0, x1, y1) in enumerate(corners.tolist()):
            masks[number, y0:y1, x0:x1] = 1
            image[:, y0:y1, x0:x1] += 100 if number < 2 else 0
        target = {
            "boxes": tv_tensors.BoundingBoxes(corners.float(), format="XYXY", canvas_size=(60, 100)),
            "labels": torch.tensor([1, 2, 1]),
            "image_id": 10 + index,
            "iscrowd": torch.tensor([0, 0, 1]),
            "area": torch.tensor([520.0, 1360.0, 6000.0]),
        }
        return tv_tensors.Image(image), target | ({"masks": tv_tensors.Mask(masks)} if self.masks else {})


def varied(transforms: Any, masks: bool = True) -> VariedDataset:
    return VariedDataset(checked(Shapes(masks), channels=3, needs_masks=masks), transforms)


def test_what_transforms_get_and_return() -> None:
    seen: list[dict[str, Any]] = []

    def look(image: Tensor, target: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        seen.append(target)
        return image, target

    image, target = varied(look)[1]
    assert isinstance(image, tv_tensors.Image)
    assert seen[0].keys() == {"boxes", "labels", "masks", "image_id"}  # no crowds, and what transforms keep in step
    assert target["boxes"].tolist() == seen[0]["boxes"].tolist() == [[4, 6, 30, 26], [50, 20, 90, 54]]
    assert target["image_id"] == 11
    assert len(target["masks"]) == 2


@pytest.mark.parametrize("masks", [True, False])
def test_torchvision_transforms(masks: bool) -> None:
    crops = v2.Compose([v2.RandomIoUCrop(), v2.RandomHorizontalFlip(), v2.RandomResize(30, 90)])
    data, lengths = varied(crops, masks), set()
    check_transforms(data)
    for seed in range(20):
        image, target = TransformedDataset(data)[0, seed]
        again, other = TransformedDataset(data)[0, seed]
        assert torch.equal(image, again)
        assert torch.equal(target["boxes"], other["boxes"])
        assert {len(target[key]) for key in target if key != "image_id"} == {len(target["boxes"])}
        lengths.add(len(target["boxes"]))
        if masks and len(target["boxes"]):
            around = masks_to_boxes(target["masks"]) + torch.tensor([0, 0, 1, 1])
            assert (around - target["boxes"]).abs().max() <= 2
    assert lengths >= {1, 2}  # what a crop cuts off is removed, without a v2.SanitizeBoundingBoxes


def test_float_images_are_accepted() -> None:
    image, _ = varied(v2.ToDtype(torch.float32, scale=True))[0]
    assert image.dtype == torch.float32
    assert float(image.max()) == pytest.approx(100 / 255)


def with_target(**changed: Any) -> Changes:
    return lambda image, target: (image, target | {key: make(target) for key, make in changed.items()})


REFUSED: dict[str, tuple[Any, list[str]]] = {
    "boxes without labels": (with_target(boxes=lambda t: t["boxes"][:1]), ["labels", "(1, …)"]),
    "labels without boxes": (with_target(labels=lambda t: t["labels"][:1]), ["labels", "(2, …)"]),
    "boxes without masks": (
        with_target(boxes=lambda t: t["boxes"][:1], labels=lambda t: t["labels"][:1]),
        ["masks", "(1, …)"],
    ),
    "float labels": (with_target(labels=lambda t: t["labels"].float()), ["labels", "int64", "float32"]),
    "unknown labels": (with_target(labels=lambda t: t["labels"] + 1), ["labels", "1..2"]),
    "integer boxes": (with_target(boxes=lambda t: t["boxes"].to(torch.int64)), ["boxes", "int64"]),
    "boxes in a list": (with_target(boxes=lambda t: t["boxes"].tolist()), ["boxes", "list"]),
    "boxes of corners and sizes": (v2.ConvertBoundingBoxFormat("XYWH"), ["boxes", "XYWH"]),
    "turned boxes": (with_target(boxes=lambda t: t["boxes"][:, [2, 3, 0, 1]]), ["boxes", "x0 <= x1"]),
    "infinite boxes": (with_target(boxes=lambda t: t["boxes"] / 0), ["boxes", "finite"]),
    "no masks": (lambda image, t: (image, {key: t[key] for key in t if key != "masks"}), ["masks", "nothing"]),
    "float masks": (with_target(masks=lambda t: t["masks"] / 2), ["masks", "float32"]),
    "the image alone": (lambda image, t: image, ["(image, target)", "(3, 60, 100)"]),
    "nothing": (lambda image, t: None, ["(image, target)", "nothing"]),
    "three things": (lambda image, t: (image, t, 1), ["(image, target)", "tuple"]),
    "a list for a target": (lambda image, t: (image, [t]), ["(image, target)", "list"]),
    "a Pillow image": (v2.ToPILImage(), ["image", "Image"]),
    "float64": (v2.ToDtype(torch.float64, scale=True), ["image", "float64"]),
    "normalised": (
        v2.Compose([v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True), v2.Normalize([1], [1])]),
        ["image", "0..1"],
    ),
    "an image cut by hand": (lambda image, t: (image[:, :40], t), ["boxes", "(60, 100)", "(40, 100)"]),
    "an error": (lambda image, t: t["nose"], ["raised KeyError", "nose"]),
    "a bad call": (lambda image: image, ["raised TypeError"]),
    "no objects": (with_target(**{key: lambda t, key=key: t[key][:0] for key in ("boxes", "labels", "masks")}), ["6"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_before_a_training(name: str) -> None:
    transforms, words = REFUSED[name]
    with pytest.raises(InputError) as refused:
        check_transforms(varied(transforms))
    line = str(refused.value)
    assert "\n" not in line
    for word in ["transforms", *words]:
        assert word in line, line


def test_keypoints_are_refused() -> None:
    data = varied(lambda image, target: (image, target))
    image, target = data[0]
    with pytest.raises(InputError, match="keypoints"):
        data.varied((image, target | {"keypoints": torch.zeros(2, 17, 3)}), 0)


def test_a_generator_of_its_own_is_told() -> None:
    own = np.random.default_rng(0)

    def shaken(image: Tensor, target: dict[str, Any]) -> Any:
        return (image // 2 if own.random() < 0.5 else image), target

    def seeded_all(image: Tensor, target: dict[str, Any]) -> Any:
        bright = 20 * (random.random() + np.random.random() + float(torch.rand(())))
        return tv_tensors.Image((image.float() + bright).to(torch.uint8)), target

    class Always:
        calls = 0

        def __call__(self, image: Tensor, target: dict[str, Any]) -> Any:
            self.calls += 1
            return tv_tensors.Image(image + self.calls), target

    for transforms in (shaken, Always()):
        with pytest.warns(RuntimeWarning, match="same seed"):
            check_transforms(varied(transforms))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_transforms(varied(seeded_all))


def test_what_loader_processes_cannot_get(monkeypatch: pytest.MonkeyPatch) -> None:
    data = varied(lambda image, target: (image, target))
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "spawn")
    check_transforms(data, workers=0)
    with pytest.raises(InputError, match=r"transforms.*data\.workers=0"):
        check_transforms(data, workers=2)
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: "fork")
    check_transforms(data, workers=2)


@pytest.mark.parametrize("transforms", [v2.RandomHorizontalFlip, 3, "flip"], ids=["class", "number", "text"])
def test_what_is_no_function(transforms: Any) -> None:
    with pytest.raises(InputError, match=r"^transforms: expected a function"):
        varied(transforms)


def test_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_cells.py").write_text("def flip(image, target):\n    return image, target\nNUMBER = 3\n")
    (tmp_path / "my_broken.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    flip = load_transforms("my_cells:flip")
    assert name_of(flip) == "my_cells.flip"
    assert name_of(v2.Compose([v2.Identity()])) == "torchvision.transforms.v2._container.Compose"
    assert name_of(None) is None
    for text, word in {
        "my_cells:flop": "'flip'",
        "my_cells:NUMBER": "int",
        "my_cell:flip": "my_cell",
        "my_broken:flip": "ZeroDivisionError",
        "my_cells": "module:function",
        "my_cells.py:flip": "module:function",
        "": "module:function",
        "torchvision.transforms.v2:Compose": "class",
    }.items():
        with pytest.raises(InputError, match=r"^--transforms") as refused:
            load_transforms(text)
        assert word in str(refused.value), refused.value


# ---- Albumentations

FORMATS = ["pascal_voc", "coco", "yolo", "albumentations"]


def compose(*steps: Any, box_format: str = "pascal_voc", labels: bool = True, **settings: Any) -> Any:
    albumentations = pytest.importorskip("albumentations")
    fields = {"label_fields": ["labels"]} if labels else {}
    return albumentations.Compose(
        list(steps), bbox_params=albumentations.BboxParams(format=box_format, clip=True, **fields, **settings)
    )


@pytest.mark.parametrize("box_format", FORMATS)
@pytest.mark.parametrize("masks", [True, False])
def test_albumentations_by_torchvision(box_format: str, masks: bool) -> None:
    """The same crop and flip by torchvision."""
    albumentations = pytest.importorskip("albumentations")
    steps = [albumentations.Crop(20, 10, 80, 55), albumentations.HorizontalFlip(p=1)]
    image, target = varied(compose(*steps, box_format=box_format, labels=masks), masks)[0]

    def by_torchvision(pixels: Any, objects: Any) -> Any:
        for step in (lambda one: v2.functional.crop(one, 10, 20, 45, 60), v2.functional.horizontal_flip):
            pixels = step(pixels)
            objects |= {key: step(objects[key]) for key in ("boxes", "masks") if key in objects}
        return pixels, objects

    expected, theirs = varied(by_torchvision, masks)[0]
    assert torch.equal(image, expected)
    torch.testing.assert_close(
        target["boxes"].as_subclass(Tensor), theirs["boxes"].as_subclass(Tensor), atol=1e-3, rtol=0
    )
    assert target["labels"].tolist() == theirs["labels"].tolist() == [1, 2]
    if masks:
        assert torch.equal(target["masks"], theirs["masks"])


@given(st.integers(0, 2**32), st.sampled_from(FORMATS))
def test_albumentations_keeps_objects_together(seed: int, box_format: str) -> None:
    albumentations = pytest.importorskip("albumentations")
    crop = compose(albumentations.RandomCrop(30, 40), albumentations.Rotate(10), box_format=box_format)
    data = TransformedDataset(varied(crop))
    image, target = data[0, seed]
    again, other = data[0, seed]
    assert torch.equal(image, again)  # the seed of the sample is that of its generator, too
    assert torch.equal(target["boxes"], other["boxes"])
    assert target["masks"].shape[1:] == image.shape[1:] == (30, 40)
    for box, label, mask in zip(target["boxes"].tolist(), target["labels"].tolist(), target["masks"], strict=True):
        assert 0 <= box[0] < box[2] <= 40
        assert 0 <= box[1] < box[3] <= 30
        assert label in (1, 2)
        x0, y0, x1, y1 = masks_to_boxes(mask[None])[0].tolist()  # the mask lies in the box of its own object
        assert min(x0 - box[0], y0 - box[1], box[2] - x1, box[3] - y1) > -2


def test_albumentations_that_cannot_be_used() -> None:
    albumentations = pytest.importorskip("albumentations")
    flip = albumentations.HorizontalFlip(p=1)
    assert is_albumentations(flip)
    assert not is_albumentations(v2.Compose([v2.Identity()]))
    for transforms in (flip, albumentations.Compose([flip])):
        with pytest.raises(InputError, match="bbox_params"):
            check_transforms(varied(transforms))
    with pytest.raises(InputError, match=r"0\.\.1"):
        check_transforms(varied(compose(albumentations.Normalize())))
    with pytest.raises(InputError, match=r"transforms.*removed every object"):
        check_transforms(varied(compose(albumentations.Crop(0, 0, 3, 3))))


def test_images_without_objects() -> None:
    albumentations = pytest.importorskip("albumentations")

    class Empty(Shapes):
        def __getitem__(self, index: int) -> Any:
            target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
            return torch.zeros(3, 60, 100, dtype=torch.uint8), target

    for transforms in (compose(albumentations.HorizontalFlip()), v2.RandomIoUCrop()):
        data = VariedDataset(checked(Empty(), channels=3, needs_masks=True), transforms)
        check_transforms(data)
        with seeded(0):
            assert data[0][1]["masks"].shape[0] == 0
