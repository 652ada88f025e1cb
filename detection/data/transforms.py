"""The transforms of a recipe, composed from torchvision's v2 transforms.

Images are scaled without anti-aliasing, because torchvision's detectors scale without it at test time
(``GeneralizedRCNNTransform``), and training should see the same pixels. Images are scaled as bytes, not floats: from
480×640 to 800×1066 pixels, bytes in channels-last memory took 1.7 ms on one core, floats 4 to 11 ms.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from vovnet.detection.config.data import DataRecipe
from vovnet.detection.data.datasets import checked
from vovnet.detection.data.keypoints import Keypoints
from vovnet.detection.data.protocol import DetectionDataset
from vovnet.detection.data.samples import Sample
from vovnet.detection.data.windows import PER_OBJECT


def train_transforms(data: DataRecipe) -> v2.Transform:
    """Return a recipe's training transforms: colour, flips, scale, then clipping of boxes and removal of empty ones.

    Without ``scale_jitter``, the short side is drawn from ``train_min_sizes`` and the long side is at most
    ``train_max_size``. With it, the image is scaled to fit a square of ``train_max_size``, times a factor from that
    range, and cropped to the square (large-scale jitter, arXiv:2012.07177; the detector pads the batch).
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


class ShortestSize(v2.Transform):
    """Scale to a short side drawn from ``min_sizes`` in pixels, with a long side of at most ``max_size``.

    Unlike torchvision's ``RandomShortestSize``, no side becomes 0 pixels long.
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
        """Scale an image, boxes or masks (masks by nearest pixel)."""
        return self._call_kernel(functional.resize, inpt, size=params["size"], antialias=False)


class ScaleJitter(ShortestSize):
    """Scale to fit a square with sides of ``target`` pixels, times a factor drawn from [low, high]."""

    def __init__(self, target: int, low: float, high: float) -> None:
        super().__init__([target], target)
        self.low, self.high = low, high

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw a size."""
        height, width = v2.query_size(flat_inputs)
        factor = self.low + float(torch.rand(())) * (self.high - self.low)
        return {"size": _scaled(height, width, factor * self.max_size / max(height, width))}


class CropToFit(v2.Transform):
    """Crop to at most ``target`` pixels per side at a random place. Smaller images are not changed."""

    def __init__(self, target: int) -> None:
        super().__init__()
        self.target = target

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        """Draw the place of the crop."""
        height, width = v2.query_size(flat_inputs)
        crop_height, crop_width = min(height, self.target), min(width, self.target)
        top = int(torch.randint(height - crop_height + 1, ()))
        left = int(torch.randint(width - crop_width + 1, ()))
        return {"top": top, "left": left, "height": crop_height, "width": crop_width}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        """Crop an image, boxes or masks."""
        return self._call_kernel(functional.crop, inpt, **params)


class KeepUsable(v2.Transform):
    """Clip boxes to the image. Remove crowds, objects with a side below one pixel, and objects with an empty mask.

    Keypoints that have left the image become unlabelled; an object may have none left.
    """

    def forward(self, *inputs: Any) -> Any:
        """Return (image, target) without the removed objects."""
        image, target = inputs if len(inputs) == 2 else inputs[0]
        boxes = functional.clamp_bounding_boxes(target["boxes"])
        plain = boxes.as_subclass(Tensor)
        keep = ((plain[:, 2:] - plain[:, :2]) >= 1).all(dim=1)
        if "masks" in target:
            keep &= target["masks"].as_subclass(Tensor).flatten(1).any(dim=1).bool()
        if "iscrowd" in target:
            keep &= target["iscrowd"] == 0
        target = {**target, "boxes": boxes}
        if "keypoints" in target:
            target["keypoints"] = target["keypoints"].inside()
        if not keep.all():
            kept = {key: target[key] for key in PER_OBJECT if key in target}
            target.update({key: rows_of(value, keep) for key, value in kept.items()})
        return image, target


def rows_of(value: Tensor, keep: Tensor) -> Tensor:
    """Return the rows of some objects as the same kind of tensor."""
    if isinstance(value, Keypoints):
        return value.like(value.as_subclass(Tensor)[keep])
    rows: Tensor = tv_tensors.wrap(value[keep], like=value)
    return rows


def _scaled(height: int, width: int, scale: float) -> tuple[int, int]:
    return max(1, int(height * scale)), max(1, int(width * scale))


class TransformedDataset(Dataset[Any]):
    """A dataset with transforms, reproducible from a seed for each sample.

    ``transformed[index, seed]`` seeds the random numbers of torch, Python and NumPy, runs the dataset and the
    transforms, and restores the random states. The sample does not depend on the number of workers or on a resumed run,
    and no other random numbers change. ``transformed[index]`` uses the current random states.

    Samples are checked by :func:`vovnet.detection.data.datasets.checked`.
    """

    def __init__(self, dataset: DetectionDataset, transforms: Callable[..., Any] | None = None) -> None:
        self.dataset, self.transforms = checked(dataset), transforms

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        if not isinstance(key, tuple):
            return self._sample(key)
        index, seed = key
        with seeded(seed):
            return self._sample(index)

    def _sample(self, index: int) -> Sample:
        try:
            image, target = self.dataset[index]
        except StopIteration as error:  # would end the loop over the batches as if there were no more images
            raise RuntimeError(f"the dataset raised StopIteration for index {index}") from error
        return (image, target) if self.transforms is None else self.transforms(image, target)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the random numbers of torch (CPU), Python and NumPy, and restore their states at the end."""
    former_python, former_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also seed the GPUs, whose random numbers are not used here.
        torch.default_generator.manual_seed(seed)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        try:
            yield
        finally:
            random.setstate(former_python)
            np.random.set_state(former_numpy)
