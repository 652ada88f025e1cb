"""Draw the first images of a training as the transforms leave them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from vovnet.detection.config.categories import Category
from vovnet.detection.data.collation import Batch
from vovnet.detection.data.pixels import as_bytes
from vovnet.detection.data.protocol import Target
from vovnet.errors import InputError
from vovnet.folders.home import expand_home
from vovnet.results.drawing import object_sheet
from vovnet.results.rle import encode_part
from vovnet.results.skeletons import skeletons_of

SHOWN = 16
"""Largest number of images on a sheet."""


def write_batch_sheet(batches: Iterable[Batch], categories: Sequence[Category], path: str | os.PathLike[str]) -> None:
    """Write a PNG with the first images of some batches, their boxes and masks, and the names of their categories.

    Args:
        batches: batches of training; no more are taken than are drawn.
        categories: the categories in label order.
        path: the file, whose folder exists. An existing file is replaced.

    Raises:
        InputError: it cannot be written there; no batch has been taken.
    """
    path = checked_sheet_path(path)
    pairs = chain.from_iterable(zip(images, targets, strict=True) for images, targets in batches)
    samples = [(_drawable(image), _objects(target, categories)) for image, target in islice(pairs, SHOWN)]
    if samples:  # a finished run has no more
        object_sheet(
            samples, f"{len(samples)} training images after transforms", path, skeletons=skeletons_of(categories)
        )


def checked_sheet_path(path: str | os.PathLike[str]) -> Path:
    """Return a path that a PNG can be written to, with ``~`` replaced.

    Raises:
        InputError: it has another ending, is a folder, or its folder does not exist.
    """
    path = expand_home(path)
    if path.suffix.lower() != ".png":
        raise InputError(f"--show-batch: expected the name of a file that ends in .png, got '{path}'")
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"--show-batch: expected a file in a folder that exists, got '{path}'")
    return path


def _drawable(image: Tensor) -> Image.Image:
    pixels = as_bytes(image).numpy()
    return Image.fromarray(pixels.transpose(1, 2, 0) if len(pixels) == 3 else pixels[0])


def _objects(target: Target, categories: Sequence[Category]) -> list[dict[str, Any]]:
    objects = []
    for number, (box, label) in enumerate(zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True)):
        category = categories[label - 1]
        one: dict[str, Any] = {
            "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            "category_id": category["id"],
            "category": category["name"],
        }
        if "masks" in target:
            mask = np.ascontiguousarray(target["masks"][number].numpy() > 0)
            size = (mask.shape[0], mask.shape[1])
            one["segmentation"] = {"size": list(size), "counts": encode_part(mask, (0, 0), size)}
        if "keypoints" in target:  # v is 0, 1 or 2, and a drawing leaves out scores below one half
            one["keypoints"] = target["keypoints"][number].flatten().tolist()
        objects.append(one)
    return objects
