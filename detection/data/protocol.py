"""The types of a dataset, as training and evaluation use it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from vovnet.detection.config.schema import Category

Target = dict[str, Any]
"""The objects of an image; :class:`DetectionDataset` lists the keys."""


class DetectionDataset(Protocol):
    """A dataset for training or evaluation. Any object with these attributes can be used; no base class is needed.

    ``dataset[i]`` returns ``(image, target)``. The image is a ``tv_tensors.Image``, uint8 (C, H, W), RGB or with as
    many channels as the model takes; a plain tensor or a Pillow image is accepted, too. The target is a dict with

    - ``boxes``: ``tv_tensors.BoundingBoxes`` or a tensor, float32 (N, 4), x0, y0, x1, y1 in absolute pixels;
    - ``labels``: int64 (N,) in 1..K. 0 is the background, and label k means ``dataset.categories[k - 1]``;
    - ``image_id``: int, different for each image;
    - ``masks``, if there are masks: ``tv_tensors.Mask`` or a tensor, uint8 (N, H, W) of 0 and 1;
    - ``iscrowd``, int64 (N,), and ``area``, float32 (N,) in pixels: optional. Training leaves out crowds.

    These attributes are optional:

    - ``dataset.image_size(i)`` returns ``(height, width)`` in pixels without decoding the image. Training then puts
      wide and high images into separate batches.
    - ``dataset.ground_truth`` is a COCO JSON object (``images``, ``annotations``, ``categories``) to evaluate against.
      Without it, evaluation uses the targets.
    - ``dataset.file_name(i)`` returns the image's name for messages.

    A dataset is copied into loader processes, so it should open files when a sample is requested, not before.
    """

    @property
    def categories(self) -> Sequence[Category]:
        """``[{"id": int, "name": str}, ...]`` sorted by id. The ids are arbitrary and are used in results."""
        ...

    def __len__(self) -> int:
        """Return the number of images."""
        ...

    def __getitem__(self, index: int, /) -> tuple[Any, Target]:
        """Return an image and its target."""
        ...
