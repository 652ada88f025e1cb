"""Check a sample of a dataset, and bring what is accepted into one form. Training and evaluation both do so.

A value that could mean two things is refused; what means the same (a list for a tensor, int64 boxes, a missing
``iscrowd``) is accepted by both, with the same meaning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from vovnet.detection.data.keypoints import Keypoints
from vovnet.detection.data.pixels import plain_tensor, to_pixels
from vovnet.detection.data.protocol import Target
from vovnet.errors import InputError, shown

Sample = tuple[Tensor, Target]
"""An image, uint8 in 0..255 or float32 in [0, 1], (C, H, W), and its target; see :mod:`vovnet.detection.data`."""

_OURS = ("corners", "polygons", "encoded_masks")
"""Keys that only the datasets of this package have."""


def check_sample(
    sample: Any,
    index: int,
    classes: int,
    *,
    channels: int | None = None,
    needs_masks: bool = False,
    needs_keypoints: bool = False,
    mirror: Sequence[int] | None = None,
) -> Sample:
    """Return a sample in the form of :class:`vovnet.detection.data.DetectionDataset`, without other keys.

    Args:
        sample: What a dataset returned.
        index: The image's id, if the sample has none.
        classes: The number of categories.
        channels: The channels of the image that is returned; None leaves tensors as they are.
        needs_masks: Refuse objects without masks.
        needs_keypoints: Refuse objects without keypoints, labelled or not.
        mirror: For each keypoint the one whose place it takes in a mirror image; None drops keypoints.

    Raises:
        InputError: The sample does not follow the protocol. The message does not name the sample.
    """
    try:
        image, target = sample
        boxes, labels = target["boxes"], target["labels"]
    except (TypeError, ValueError, KeyError, IndexError) as error:
        raise InputError(f"expected (image, {{'boxes', 'labels', …}}), got {_form(sample)}") from error
    if not isinstance(target, Mapping):
        raise InputError(f"expected a dictionary as the target, got {type(target).__name__}")
    pixels = to_pixels(image, channels, "image").cpu()
    size = (int(pixels.shape[1]), int(pixels.shape[2]))
    checked: Target = {"image_id": _image_id(target.get("image_id"), index), "boxes": check_boxes(boxes, size)}
    count = len(checked["boxes"])
    checked["labels"] = _labels(labels, count, classes)
    if target.get("masks") is not None:
        checked["masks"] = _masks(target["masks"], count, size)
    elif needs_masks and not ({"polygons", "encoded_masks"} & target.keys()):
        if count:
            raise InputError("masks: missing; this detector is trained on masks; give them, or another model.detector")
        checked["masks"] = tv_tensors.Mask(torch.zeros(0, *size, dtype=torch.uint8))
    if mirror is not None:
        checked |= _keypoints(target.get("keypoints"), count, size, mirror, needs_keypoints)
    if target.get("iscrowd") is not None:
        checked["iscrowd"] = _crowds(target["iscrowd"], count)
    if target.get("area") is not None:
        checked["area"] = _areas(target["area"], count)
    return tv_tensors.Image(pixels), checked | {key: target[key] for key in _OURS if key in target}


def check_boxes(value: Any, size: tuple[int, int]) -> tv_tensors.BoundingBoxes:
    """Return boxes as float32 (N, 4), x0, y0, x1, y1 in pixels, clipped to an image of ``size`` (height, width).

    Raises:
        InputError: They are not finite, have no width or height, or lie outside the image.
    """
    if isinstance(value, tv_tensors.BoundingBoxes):
        if tuple(value.canvas_size) != size:
            raise InputError(f"boxes: expected canvas_size {size}, that of the image, got {tuple(value.canvas_size)}")
        if value.format != tv_tensors.BoundingBoxFormat.XYXY and value.ndim == 2 and value.shape[1] == 4:
            value = functional.convert_bounding_box_format(value, new_format=tv_tensors.BoundingBoxFormat.XYXY)
    boxes = _tensor(value, "boxes")
    if boxes.shape == (0,):
        boxes = boxes.reshape(0, 4)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype == torch.bool:
        raise InputError(f"boxes: expected numbers (N, 4), x0, y0, x1, y1 in pixels, got {_form(value)}")
    boxes = boxes.to(torch.float32)
    x0, y0, x1, y1 = corners = boxes.numpy().T  # NumPy, because these arrays are small
    sound = (x0 < x1) & (y0 < y1) & (x0 < size[1]) & (y0 < size[0]) & (x1 > 0) & (y1 > 0)
    if not (sound.all() and np.isfinite(corners).all()):
        _refuse_box(boxes, size)
    clipped = np.clip(boxes.numpy(), 0, (size[1], size[0], size[1], size[0])).astype(np.float32)
    return tv_tensors.BoundingBoxes(torch.from_numpy(clipped), format="XYXY", canvas_size=size)


def _refuse_box(boxes: Tensor, size: tuple[int, int]) -> None:
    for number, (x0, y0, x1, y1) in enumerate(boxes.tolist()):
        box = f"boxes[{number}] = {x0:g}, {y0:g}, {x1:g}, {y1:g}"
        if not np.isfinite((x0, y0, x1, y1)).all():
            raise InputError(f"{box}: expected finite numbers; leave the object out")
        if not (x0 < x1 and y0 < y1):
            raise InputError(f"{box}: expected x0 < x1 and y0 < y1, in pixels; leave out objects without an extent")
        if not (x0 < size[1] and y0 < size[0] and x1 > 0 and y1 > 0):
            raise InputError(f"{box}: lies outside the image ({size[1]}x{size[0]}); leave the object out")


def _labels(value: Any, count: int, classes: int) -> Tensor:
    labels = _rows(value, "labels", count)
    if count and (labels.is_floating_point() or labels.dtype == torch.bool):
        raise InputError(f"labels: expected integers in 1..{classes}, got {labels.dtype}")
    labels = labels.to(torch.int64)
    if count and not (labels.numpy().min() >= 1 and labels.numpy().max() <= classes):
        found = shown(sorted(set(labels.tolist())))
        raise InputError(f"labels: expected 1..{classes} (0 is background), got {found}")
    return labels


def _masks(value: Any, count: int, size: tuple[int, int]) -> tv_tensors.Mask:
    masks = _tensor(value, "masks")
    if not count and masks.numel() == 0:
        masks = masks.new_zeros(0, *size)
    if masks.shape != (count, *size):
        raise InputError(f"masks: expected ({count}, {size[0]}, {size[1]}), got {_form(value)}")
    if masks.dtype != torch.bool and masks.numel():
        binary = bool(masks.max() <= 1) if masks.dtype == torch.uint8 else bool(((masks == 0) | (masks == 1)).all())
        if not binary:
            raise InputError("masks: expected values 0 and 1, got others; write masks > 0, or masks > 0.5")
    return tv_tensors.Mask(masks.to(torch.uint8))


def _keypoints(value: Any, count: int, size: tuple[int, int], mirror: Sequence[int], needed: bool) -> Target:
    """Return the target's keypoints as :class:`Keypoints`, or nothing if it has none and they are not needed."""
    if value is None:
        if not needed:
            return {}
        if count:
            raise InputError(
                "keypoints: missing; this detector is trained on keypoints; give them, or another model.detector"
            )
    shape = (count, len(mirror), 3)
    points = torch.zeros(shape) if value is None else _tensor(value, "keypoints")
    if not count and points.numel() == 0:
        points = points.new_zeros(shape)
    if points.shape != shape or points.dtype == torch.bool:
        raise InputError(f"keypoints: expected {shape}, x, y in pixels and v of each, got {_form(value)}")
    points = points.to(torch.float32)
    numbers = points.numpy()
    if not np.isfinite(numbers).all() or not np.isin(numbers[..., 2], (0, 1, 2)).all():
        raise InputError(
            "keypoints: expected finite x, y in pixels, and v 0 (not labelled), 1 (hidden) or 2 (visible) of each"
        )
    return {"keypoints": Keypoints.of(points, size, mirror).inside()}


def _crowds(value: Any, count: int) -> Tensor:
    crowds = _rows(value, "iscrowd", count).to(torch.float64)
    if not np.isin(crowds.numpy(), (0, 1)).all():
        raise InputError(f"iscrowd: expected 0 or 1 for each object, got {shown(crowds.tolist())}")
    return crowds.to(torch.int64)


def _areas(value: Any, count: int) -> Tensor:
    areas = _rows(value, "area", count).to(torch.float32)
    if not (np.isfinite(areas.numpy()) & (areas.numpy() >= 0)).all():
        raise InputError(f"area: expected finite numbers of pixels of at least 0, got {shown(areas.tolist())}")
    return areas


def _image_id(value: Any, index: int) -> int:
    if value is None:
        return index
    number = value
    if isinstance(value, Tensor | np.ndarray) and value.shape in ((), (1,)):  # torchvision's references have tensors
        number = value.reshape(-1).tolist()[0]
    elif isinstance(value, np.generic):
        number = value.item()
    if not isinstance(number, int) or isinstance(number, bool) or abs(number) >= 2**63:
        raise InputError(f"image_id: expected an integer, got {_form(value)}")
    return number


def _rows(value: Any, key: str, count: int) -> Tensor:
    rows = _tensor(value, key)
    if rows.shape != (count,) and not (count == 0 and rows.numel() == 0):
        raise InputError(f"{key}: expected ({count},), one of each box, got {_form(value)}")
    return rows.reshape(count)


def _tensor(value: Any, key: str) -> Tensor:
    """Return a tensor, array or nested list as a plain tensor on the CPU."""
    try:
        if isinstance(value, Tensor):
            tensor = plain_tensor(value).cpu()
        else:
            array = np.array(value)
            tensor = torch.from_numpy(array.astype(array.dtype.newbyteorder("="), copy=False))
        if tensor.is_complex() or tensor.layout != torch.strided:
            raise TypeError
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError includes NotImplementedError, of meta tensors
        raise InputError(f"{key}: expected a tensor, an array or a list of numbers, got {_form(value)}") from error
    return tensor


def _form(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} {tuple(value.shape)} of {value.dtype}"
    if isinstance(value, tuple):
        return f"({', '.join(_form(one) for one in value[:3])})"
    return shown(value) if isinstance(value, list | dict | int | float | str) else type(value).__name__
