"""Call transforms of Albumentations, which take arrays by keyword, on our samples. Albumentations is not imported."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision import tv_tensors

from vovnet.detection.data.protocol import Target
from vovnet.errors import InputError

_FORMATS = {"pascal_voc", "coco", "yolo", "albumentations"}
_KNOWN = {"boxes", "labels", "masks", "image_id"}


def is_albumentations(transforms: Any) -> bool:
    """Return True for a transform or composition of Albumentations."""
    return any(cls.__module__.partition(".")[0] == "albumentations" for cls in type(transforms).__mro__)


def with_albumentations(compose: Any, image: Tensor, target: Target) -> tuple[Tensor, Target]:
    """Return a sample after a ``Compose`` of Albumentations with ``bbox_params``, of any format.

    Its random numbers are seeded from torch's. Boxes that it removes are removed with their labels and masks.

    Args:
        compose: ``albumentations.Compose``.
        image: (C, H, W).
        target: ``boxes`` (N, 4), ``labels`` (N,), and optionally ``masks`` (N, H, W).

    Raises:
        InputError: It does not transform boxes, or the target has what cannot be handed to it.
    """
    if unknown := sorted(target.keys() - _KNOWN):
        raise InputError(f"Albumentations gets no {', '.join(unknown)} here; use torchvision's v2 transforms")
    processor = getattr(compose, "processors", {}).get("bboxes")
    if processor is None:
        raise InputError(
            "this Albumentations transform leaves boxes alone; expected albumentations.Compose([…], "
            "bbox_params=albumentations.BboxParams(format='pascal_voc', label_fields=['labels']))"
        )
    params = processor.params
    if params.format not in _FORMATS:
        raise InputError(f"bbox_params: expected one of {', '.join(sorted(_FORMATS))}, got {params.format!r}")
    seed = int(torch.randint(2**31, ()))
    if hasattr(compose, "set_random_seed"):  # from 1.4.19 on; before, they draw from Python's and NumPy's
        compose.set_random_seed(seed)
    boxes = target["boxes"].as_subclass(Tensor).numpy().astype(np.float64)
    rows = np.arange(len(boxes), dtype=np.float64)[:, None]  # a fifth column travels with a box, and says which it is
    given: dict[str, Any] = {
        "image": np.ascontiguousarray(image.as_subclass(Tensor).permute(1, 2, 0).numpy()),
        "bboxes": np.concatenate([_to(boxes, params.format, image.shape[-2:]), rows], axis=1),
    }
    given |= {field: target["labels"].tolist() for field in params.label_fields or ()}
    if "masks" in target and len(boxes):
        given["masks"] = np.ascontiguousarray(target["masks"].as_subclass(Tensor).numpy())
    found = compose(**given)
    return _sample(found, target, params.format)


def _sample(found: Any, target: Target, box_format: str) -> tuple[Tensor, Target]:
    pixels = np.asarray(found["image"])
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels
    height, width = pixels.shape[:2]
    table = np.asarray(found["bboxes"], dtype=np.float64).reshape(-1, 5)
    kept = torch.from_numpy(table[:, 4].round().astype(np.int64))
    boxes = torch.from_numpy(_from(table[:, :4], box_format, (height, width)).astype(np.float32))
    after: Target = {
        **target,
        "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)),
        "labels": target["labels"][kept],
    }
    if "masks" in target:
        masks = torch.zeros(0, height, width, dtype=torch.uint8)
        if len(target["masks"]):
            masks = torch.from_numpy(np.stack([np.asarray(mask) for mask in found["masks"]]))[kept]
        after["masks"] = tv_tensors.Mask(masks)
    return tv_tensors.Image(torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))), after


def _to(boxes: NDArray[np.float64], box_format: str, size: Any) -> NDArray[np.float64]:
    """Return boxes x0, y0, x1, y1 in pixels in a format of Albumentations, for an image of (height, width)."""
    if box_format == "coco":
        return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    if box_format == "pascal_voc":
        return boxes
    boxes = boxes / np.array([size[1], size[0]] * 2, dtype=np.float64)
    if box_format == "albumentations":
        return boxes
    return np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1)


def _from(boxes: NDArray[np.float64], box_format: str, size: tuple[int, int]) -> NDArray[np.float64]:
    """Return boxes in a format of Albumentations as x0, y0, x1, y1 in pixels."""
    if box_format == "yolo":
        boxes = np.concatenate([boxes[:, :2] - boxes[:, 2:] / 2, boxes[:, :2] + boxes[:, 2:] / 2], axis=1)
    if box_format in ("yolo", "albumentations"):
        return boxes * np.array([size[1], size[0]] * 2, dtype=np.float64)
    if box_format == "coco":
        return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    return boxes
