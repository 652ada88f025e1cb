"""The sizes of a dataset's objects, and how small a detector's resize makes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vovnet.results.limits import resize_factor


@dataclass(frozen=True)
class ObjectSizes:
    """The N objects of a dataset's images."""

    boxes: NDArray[np.float64]
    """(N, 2): width and height of each box in pixels."""
    images: NDArray[np.int64]
    """(N,): positions of their images."""
    shapes: NDArray[np.int64]
    """(I, 2): height and width of each image in pixels."""

    @property
    def sides(self) -> NDArray[np.float64]:
        """(N,): square roots of the areas of the boxes, in pixels."""
        return np.sqrt(np.maximum(self.boxes.prod(axis=1), 0.0))

    @property
    def median(self) -> float:
        """The median side in pixels of the images as they are."""
        return float(np.median(self.sides))

    @property
    def median_image(self) -> tuple[float, float]:
        """The median height and width in pixels of the images."""
        height, width = np.median(self.shapes, axis=0).tolist()
        return height, width

    @property
    def most(self) -> int:
        """The largest number of objects in an image."""
        return int(self.counts.max())

    @property
    def counts(self) -> NDArray[np.int64]:
        """(I,): the number of objects in each image."""
        return np.bincount(self.images, minlength=len(self.shapes))

    def cropped(self, side: int) -> ObjectSizes:
        """Return the sizes in crops, or tiles, of ``side`` × ``side`` pixels; smaller images are whole."""
        return replace(self, boxes=np.minimum(self.boxes, side), shapes=np.minimum(self.shapes, side))

    def resized_median(self, min_size: float, max_size: float) -> float:
        """Return the median side after the resize of :func:`resize_factor`."""
        return float(np.median(self.resized_sides(min_size, max_size)))

    def resized_sides(self, min_size: float, max_size: float) -> NDArray[np.float64]:
        """Return the sides (N,) in pixels after the resize of :func:`resize_factor`."""
        return self.sides * resize_factor(self.shapes, min_size, max_size)[self.images]


def sizes_of(dataset: Any) -> ObjectSizes | None:
    """Return the sizes of a dataset's objects without decoding an image, or None if that is not possible.

    It is possible for :class:`~vovnet.detection.data.coco.CocoDataset`, which has the method ``object_sizes``, and for
    any dataset with a ``ground_truth``.
    """
    if callable(getattr(dataset, "object_sizes", None)):
        found: ObjectSizes | None = dataset.object_sizes()
        return found if found is not None and len(found.sides) else None
    truth = getattr(dataset, "ground_truth", None)
    return sizes_of_truth(truth) if truth else None


def sizes_of_truth(truth: Mapping[str, Any]) -> ObjectSizes | None:
    """Return the sizes of the objects in a COCO dictionary, or None if there are none."""
    positions = {image["id"]: position for position, image in enumerate(truth["images"])}
    kept = [
        (one["bbox"][2:4], positions[one["image_id"]])
        for one in truth["annotations"]
        if one.get("bbox") and one["image_id"] in positions
    ]
    shapes = [(image.get("height"), image.get("width")) for image in truth["images"]]
    if not kept or not all(height and width for height, width in shapes):
        return None
    boxes, images = zip(*kept, strict=True)
    return ObjectSizes(np.array(boxes, dtype=np.float64), np.array(images), np.array(shapes))
