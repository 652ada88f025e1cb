"""Transforms: torchvision's v2, put together as a recipe says.

Images are scaled without anti-aliasing, because torchvision's detectors have none when they scale an image at test
time (``GeneralizedRCNNTransform``), and training and test must see alike. Bytes are scaled, not floats: from 480×640 to
800×1066 pixels took 1.7 ms on a core channels-last, as Pillow gives them, where floats took 4 to 11.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from vovnet.detection.config.schema import DataRecipe
from vovnet.detection.data.images import to_tensor
from vovnet.errors import InputError

Sample = tuple[Tensor, dict[str, Any]]
"""An image uint8 (C, H, W) and its target; see :mod:`vovnet.detection.data`."""

PER_OBJECT = ("boxes", "labels", "masks", "area", "iscrowd")
"""Keys of a target whose tensors have a row for each object."""


def train_transforms(data: DataRecipe) -> v2.Transform:
    """What varies a training sample: colour, flips, then scale; boxes are clipped and what vanished is removed.

    Scale is either a short side drawn from ``train_min_sizes``, the long side at most ``train_max_size``; or, with
    ``scale_jitter``, an image that would fit a square of ``train_max_size`` is scaled by a factor from that range and
    cropped to the square (large-scale jitter, arXiv:2012.07177; the detector pads its batch, not this).
    """
    steps: list[v2.Transform] = []
    if data.colour:
        strength = data.colour
        steps.append(v2.ColorJitter(0.4 * strength, 0.4 * strength, 0.4 * strength, 0.1 * strength))
    if data.flip:
        steps.append(v2.RandomHorizontalFlip(data.flip))
    if data.vertical_flip:
        steps.append(v2.RandomVerticalFlip(data.vertical_flip))
    if data.scale_jitter is None:
        steps.append(ShortestSize(data.train_min_sizes, data.train_max_size))
    else:
        low, high = data.scale_jitter
        steps += [ScaleJitter(data.train_max_size, low, high), CropToFit(data.train_max_size)]
    return v2.Compose([*steps, KeepUsable()])


def eval_transforms() -> v2.Transform:
    """Nothing: the detector scales images itself when it is not in training."""
    return v2.Identity()


class ShortestSize(v2.Transform):
    """Scale to a short side drawn from ``min_sizes`` in pixels, the long side at most ``max_size``.

    torchvision's ``RandomShortestSize``, but a line of pixels stays at least one pixel wide.
    """

    def __init__(self, min_sizes: Sequence[int], max_size: int) -> None:
        super().__init__()
        self.min_sizes, self.max_size = list(min_sizes), max_size

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw a size."""
        height, width = v2.query_size(flat_inputs)
        short = self.min_sizes[int(torch.randint(len(self.min_sizes), ()))]
        scale = min(short / min(height, width), self.max_size / max(height, width))
        return {"size": _scaled(height, width, scale)}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Scale one of image, boxes, masks (masks by nearest pixel)."""
        return self._call_kernel(functional.resize, inpt, size=params["size"], antialias=False)


class ScaleJitter(ShortestSize):
    """Scale by a factor drawn from [low, high] times the one that fits a square of ``target`` pixels a side."""

    def __init__(self, target: int, low: float, high: float) -> None:
        super().__init__([target], target)
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw a size."""
        height, width = v2.query_size(flat_inputs)
        factor = self.low + float(torch.rand(())) * (self.high - self.low)
        return {"size": _scaled(height, width, factor * self.max_size / max(height, width))}


class CropToFit(v2.Transform):
    """Crop at random to at most ``target`` pixels a side; smaller images stay as they are."""

    def __init__(self, target: int) -> None:
        super().__init__()
        self.target = target

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw a place."""
        height, width = v2.query_size(flat_inputs)
        crop_height, crop_width = min(height, self.target), min(width, self.target)
        top = int(torch.randint(height - crop_height + 1, ()))
        left = int(torch.randint(width - crop_width + 1, ()))
        return {"top": top, "left": left, "height": crop_height, "width": crop_width}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crop one of image, boxes, masks."""
        return self._call_kernel(functional.crop, inpt, **params)


class KeepUsable(v2.Transform):
    """Clip boxes to the image; remove objects below a pixel a side or with no mask pixel left, and crowds."""

    def forward(self, *inputs: Any) -> Any:
        """Takes and returns (image, target)."""
        image, target = inputs if len(inputs) == 2 else inputs[0]
        boxes = functional.clamp_bounding_boxes(target["boxes"])
        plain = boxes.as_subclass(Tensor)
        keep = ((plain[:, 2:] - plain[:, :2]) >= 1).all(dim=1)
        if "masks" in target:
            keep &= target["masks"].as_subclass(Tensor).flatten(1).any(dim=1).bool()
        if "iscrowd" in target:
            keep &= target["iscrowd"] == 0
        target = {**target, "boxes": boxes}
        if not keep.all():
            kept = {key: target[key] for key in PER_OBJECT if key in target}
            target.update({key: tv_tensors.wrap(value[keep], like=value) for key, value in kept.items()})
        return image, target


def _scaled(height: int, width: int, scale: float) -> tuple[int, int]:
    return max(1, int(height * scale)), max(1, int(width * scale))


class TransformedDataset(Dataset[Any]):
    """A dataset of the protocol whose samples are transformed; reproducible from the seed that comes with an index.

    ``transformed[index, seed]`` runs the dataset and the transforms with torch's, Python's and NumPy's random numbers
    seeded, and restores their states: neither the number of workers nor a resumption changes a sample, and drawing one
    changes nobody else's random numbers. ``transformed[index]`` takes them as they come.

    Plain tensors and Pillow images are accepted where the protocol has torchvision's classes.
    """

    def __init__(self, dataset: Any, transforms: Callable[..., Any] | None = None) -> None:
        self.dataset, self.transforms = dataset, transforms
        self.classes = len(dataset.categories)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: int | tuple[int, int]) -> Sample:
        if not isinstance(draw, tuple):
            return self._sample(draw)
        with seeded(draw[1]):
            return self._sample(draw[0])

    def _sample(self, index: int) -> Sample:
        image, target = as_protocol(self.dataset[index], self.classes, index)
        return (image, target) if self.transforms is None else self.transforms(image, target)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's CPU, Python's and NumPy's random numbers for a while; their states are restored after it."""
    former_python, former_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which would also reseed the GPUs that nothing here draws from.
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(former_python)
            np.random.set_state(former_numpy)


def as_protocol(sample: Any, classes: int, index: int) -> Sample:
    """A dataset's sample with torchvision's classes around its tensors.

    Raises:
        InputError: it does not follow the protocol of :mod:`vovnet.detection.data`; the message says in what.
    """
    where = f"dataset[{index}]"
    try:
        image, target = sample
        boxes, labels = target["boxes"], target["labels"]
    except (TypeError, ValueError, KeyError) as error:
        raise InputError(f"{where}: expected (image, {{'boxes', 'labels', 'image_id'}}), got {type(sample)}") from error
    if isinstance(image, Image.Image):
        image = to_tensor(image)
    if not isinstance(image, Tensor) or image.ndim != 3:
        raise InputError(f"{where}: expected an image tensor (C, H, W), got {_shape(image)}")
    size = (int(image.shape[1]), int(image.shape[2]))
    _check_target(target, classes, size, where)
    if not isinstance(boxes, tv_tensors.BoundingBoxes):
        boxes = tv_tensors.BoundingBoxes(boxes.float(), format="XYXY", canvas_size=size)
    target = {"image_id": index, **target, "boxes": boxes, "labels": labels.to(torch.int64)}
    if boxes.format != tv_tensors.BoundingBoxFormat.XYXY:
        target["boxes"] = functional.convert_bounding_box_format(boxes, new_format=tv_tensors.BoundingBoxFormat.XYXY)
    if "masks" in target:
        target["masks"] = tv_tensors.Mask(target["masks"], dtype=torch.uint8)
    return tv_tensors.Image(image), target


def _check_target(target: Mapping[str, Any], classes: int, size: tuple[int, int], where: str) -> None:
    boxes, labels = target["boxes"], target["labels"]
    if not isinstance(boxes, Tensor) or boxes.ndim != 2 or boxes.shape[1] != 4:
        raise InputError(f"{where}: expected boxes (N, 4) as x0, y0, x1, y1 in pixels, got {_shape(boxes)}")
    for key in PER_OBJECT:
        if key in target and (not isinstance(target[key], Tensor) or len(target[key]) != len(boxes)):
            raise InputError(f"{where}: expected {key} of {len(boxes)} objects, got {_shape(target[key])}")
    if "masks" in target and target["masks"].shape[1:] != size:
        raise InputError(f"{where}: expected masks (N, {size[0]}, {size[1]}), got {_shape(target['masks'])}")
    if len(labels) and not (labels.min() >= 1 and labels.max() <= classes):
        raise InputError(
            f"{where}: expected labels in 1..{classes} (0 is background), got {sorted(set(labels.tolist()))}"
        )


def _shape(value: Any) -> str:
    return f"a tensor {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
