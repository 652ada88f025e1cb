"""Training transforms of the user's own: how they are found, applied and checked.

They are no part of a recipe, which is data. They run on each sample as it comes from the dataset, before the recipe's
own transforms, and draw from the sample's seed.
"""

from __future__ import annotations

import copy
import importlib
import multiprocessing
import os
import pickle
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors

from vovnet.detection.data.albumentations_bridge import is_albumentations, with_albumentations
from vovnet.detection.data.datasets import CheckedDataset
from vovnet.detection.data.protocol import Target
from vovnet.detection.data.samples import Sample, check_sample
from vovnet.detection.data.transforms import KeepUsable, rows_of, seeded
from vovnet.errors import InputError, StoppedError, did_you_mean, reason

Transforms = Callable[..., Any]
"""Called as ``transforms(image, target)``, as torchvision's v2 transforms are; or a ``Compose`` of Albumentations."""

CHECKED = 16
"""Number of samples that are tried before a training."""
_LEFT_OUT = ("area", "iscrowd")
"""Keys that transforms do not get: training needs neither, and few transforms would keep them in step with boxes."""


def load_transforms(text: str) -> Transforms:
    """Import what ``module:name`` stands for. Modules in the current folder are found, too.

    Raises:
        InputError: There is no such thing, importing it fails, or it is no callable.
    """
    module, colon, name = text.partition(":")
    if not (module and colon and name) or module.endswith(".py") or "/" in module:
        raise InputError(f"--transforms: expected module:function, such as my_transforms:augment, got {text!r}")
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:  # whatever the module does when it is imported
        raise InputError(
            f"--transforms {text}: module {module!r} cannot be imported ({type(error).__name__}: {reason(error)})"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            hint = did_you_mean(part, dir(found), "name a function or an object of it")
            raise InputError(f"--transforms {text}: module {module!r} has no {part!r}; {hint}")
        found = getattr(found, part)
    _check_callable(found, f"--transforms {text}")
    transforms: Transforms = found
    return transforms


def name_of(transforms: Transforms | None) -> str | None:
    """Return ``module.name`` of a function or of an object's class, to recognise transforms when a run is resumed."""
    if transforms is None:
        return None
    named = transforms if hasattr(transforms, "__qualname__") else type(transforms)
    return f"{named.__module__}.{named.__qualname__}"


class VariedDataset(CheckedDataset):
    """A checked dataset whose samples go through transforms of the user's own, and are checked again."""

    def __init__(self, dataset: CheckedDataset, transforms: Transforms) -> None:
        _check_callable(transforms, "transforms")
        self.__dict__.update(vars(dataset))  # it is that dataset, which has been checked
        self.transforms = transforms

    def __getitem__(self, index: int) -> Sample:
        return self.varied(super().__getitem__(index), index)

    def varied(self, sample: Sample, index: int) -> Sample:
        """Return a sample after the transforms.

        Raises:
            InputError: The transforms fail, or return what is no sample; the message names the sample.
        """
        image, target = _given(*sample)
        try:
            if "keypoints" in target:
                raise InputError("few transforms would move keypoints, so targets with them take none; leave them out")
            try:
                if is_albumentations(self.transforms):
                    result: Any = with_albumentations(self.transforms, image, dict(target))
                else:
                    result = self.transforms(image, dict(target))
            except (InputError, StoppedError):
                raise
            except Exception as error:  # whatever the user's code raises
                raise InputError(f"they raised {type(error).__name__}: {reason(error)}") from error
            return self._accepted(result, target, index)
        except InputError as error:
            raise InputError(f"transforms: {self.described(index)}: {error}") from error

    def _accepted(self, result: Any, before: Target, index: int) -> Sample:
        image, target = _form_checked(result, before)
        image, target = KeepUsable()(image, target)
        return check_sample(
            (image, {**target, "image_id": before["image_id"]}),
            index,
            len(self.categories),
            channels=self.channels,
            needs_masks=self.needs_masks,
        )


def check_transforms(dataset: VariedDataset, workers: int = 0) -> None:
    """Try the transforms on the first samples, before a training with ``workers`` loader processes.

    A warning says so if they return different things for the same seed, because a resumed run then differs from one
    that was not stopped.

    Raises:
        InputError: A result cannot be used, no object of any of these samples is left, or the transforms cannot be
            sent to loader processes.
    """
    if workers and multiprocessing.get_start_method() != "fork":
        try:
            pickle.dumps(dataset.transforms)
        except Exception as error:  # whatever its parts raise
            raise InputError(
                f"transforms: they cannot be sent to loader processes ({reason(error)}); define them in a module, "
                "outside of functions, or set data.workers=0"
            ) from error
    before = after = 0
    for index in range(min(CHECKED, len(dataset))):
        with seeded(index):
            sample = CheckedDataset.__getitem__(dataset, index)
        results = []
        for _ in range(2):
            with seeded(index):
                results.append(dataset.varied(copy.deepcopy(sample), index))
        before += len(_given(*sample)[1]["boxes"])
        after += len(results[0][1]["boxes"])
        if not _same(*results):
            warnings.warn(
                f"transforms: {dataset.described(index)} comes out differently for the same seed: they have random "
                "numbers of their own; draw them from torch, random or numpy.random, or a resumed run will differ",
                RuntimeWarning,
                stacklevel=2,
            )
            break
    if before and not after:
        raise InputError(f"transforms: they removed every object ({before}) of the first {CHECKED} images")


def _check_callable(transforms: Any, name: str) -> None:
    if isinstance(transforms, type) or not callable(transforms):
        kind = f"the class {transforms.__name__}" if isinstance(transforms, type) else type(transforms).__name__
        raise InputError(
            f"{name}: expected a function of (image, target), or an object such as torchvision's v2.Compose or an "
            f"Albumentations Compose, got {kind}"
        )


def _given(image: Tensor, target: Target) -> Sample:
    """Return what transforms get of a sample: no crowds, and no keys that they would leave behind."""
    kept = {key: value for key, value in target.items() if key not in _LEFT_OUT}
    crowds = target.get("iscrowd")
    if crowds is not None and bool(crowds.any()):
        for key, value in kept.items():
            if isinstance(value, Tensor):
                kept[key] = rows_of(value, crowds == 0)
    return image, kept


def _form_checked(result: Any, before: Target) -> Sample:
    """Check types, and that boxes, labels and masks are still of the same objects."""
    if not (isinstance(result, tuple | list) and len(result) == 2 and isinstance(result[1], Mapping)):
        raise InputError(f"expected (image, target) from them, got {_kinds(result)}")
    image, target = result[0], dict(result[1])
    if not isinstance(image, Tensor) or image.ndim != 3 or image.dtype not in (torch.uint8, torch.float32):
        raise InputError(
            f"image: expected a tensor (C, H, W), uint8 or float32 in 0..1, after them, got {_kinds(image)}"
        )
    if missing := [key for key in before if key != "image_id" and not isinstance(target.get(key), Tensor)]:
        raise InputError(f"{missing[0]}: expected a tensor after them, got {_kinds(target.get(missing[0]))}")
    boxes, size = target["boxes"], (int(image.shape[1]), int(image.shape[2]))
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not boxes.is_floating_point():
        raise InputError(f"boxes: expected floats (N, 4), x0, y0, x1, y1, after them, got {_kinds(boxes)}")
    for key in before:
        if isinstance(target[key], Tensor) and (target[key].ndim == 0 or len(target[key]) != len(boxes)):
            raise InputError(
                f"{key}: expected ({len(boxes)}, …), a row for each box that they left, got {_kinds(target[key])}; "
                "what removes a box must remove its other entries, as v2.SanitizeBoundingBoxes does"
            )
    labels = target["labels"]
    if labels.dtype != before["labels"].dtype:
        raise InputError(f"labels: expected {before['labels'].dtype} after them, got {labels.dtype}")
    if "masks" in before and target["masks"].dtype not in (torch.uint8, torch.bool):
        raise InputError(f"masks: expected uint8 of 0 and 1 after them, got {_kinds(target['masks'])}")
    if isinstance(boxes, tv_tensors.BoundingBoxes):
        if boxes.format != tv_tensors.BoundingBoxFormat.XYXY:
            raise InputError(f"boxes: expected the format XYXY after them, got {boxes.format.value}")
        if tuple(boxes.canvas_size) != size:
            raise InputError(
                f"boxes: they are for an image of {tuple(boxes.canvas_size)} (height, width), the image has {size}; a "
                "transform changed the one and not the other"
            )
    plain = boxes.as_subclass(Tensor)
    if not bool(torch.isfinite(plain).all()) or not bool((plain[:, 2:] >= plain[:, :2]).all()):
        raise InputError("boxes: expected finite numbers with x0 <= x1 and y0 <= y1 after them, got others")
    target["boxes"] = tv_tensors.BoundingBoxes(plain.float(), format="XYXY", canvas_size=size)
    return image, {key: target[key] for key in before}


def _same(one: Sample, other: Sample) -> bool:
    tensors = [("image", one[0], other[0]), *((key, one[1][key], other[1][key]) for key in one[1] if key in other[1])]
    return all(torch.equal(a, b) for _, a, b in tensors if isinstance(a, Tensor) and isinstance(b, Tensor))


def _kinds(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} of {value.dtype}"
    if isinstance(value, tuple | list):
        return f"{type(value).__name__} ({', '.join(type(one).__name__ for one in value[:4])})"
    return "nothing" if value is None else type(value).__name__
