"""A detector for the demo that computes nothing, and counts how often it is asked."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from vovnet.errors import InputError
from vovnet.results.detections import ImageDetections
from vovnet.results.limits import Limits
from vovnet.results.rle import encode_part
from vovnet.results.writing import FileDetector

CATEGORIES: list[dict[str, Any]] = [
    {"id": 3, "name": "disc"},
    {"id": 8, "name": "bar", "keypoints": ["left", "right"], "skeleton": [[1, 2]]},
]
SCORES = (0.9, 0.6, 0.3)


class Fixed:
    """Finds two bars and a disc in every image, with scores of 0.9, 0.6 and 0.3; images narrower than 8 are refused.

    Attributes:
        seen: the name of each image that it was given.
    """

    def __init__(self, shift: float = 0.0, limit: int = 100) -> None:
        self.seen: list[str] = []
        self.shift, self.limit = shift, limit

    def __call__(self, images: Sequence[Any], names: Sequence[str]) -> list[ImageDetections]:
        found = []
        for image, name in zip(images, names, strict=True):
            self.seen.append(name)
            width, height = image.size
            if width < 8:
                raise InputError(f"{name}: too narrow")
            scores = np.array(SCORES, np.float32) - np.float32(self.shift)
            boxes = [
                [0, 0, width / 2, height / 2],
                [width / 2, 0, width / 4, height],
                [0, height / 2, width, height / 4],
            ]
            whole = np.ones((height // 2, width // 2), np.bool_)
            masks = [encode_part(whole, (0, 0), (height, width))] * 3
            points = np.array([[[1, 1, 0.9], [width / 2, 1, 0.9]]] * 3, np.float32)
            boxes_array = np.array(boxes, np.float32)
            ids = np.array([8, 8, 3])
            found.append(ImageDetections(0, boxes_array, scores, ids, masks, (height, width), points))
        return found

    def ready(self) -> FileDetector:
        return FileDetector(self, 3, Limits(detections=self.limit), CATEGORIES)


def image_file(width: int = 60, height: int = 40, kind: str = "PNG") -> bytes:
    """The content of an image file."""
    ramp = np.arange(width * height * 3, dtype=np.uint32).reshape(height, width, 3) % 251
    file = io.BytesIO()
    Image.fromarray(ramp.astype(np.uint8)).save(file, kind)
    return file.getvalue()


def empty_png(width: int, height: int) -> bytes:
    """A small file of an image with many pixels, all black."""
    file = io.BytesIO()
    Image.new("1", (width, height)).save(file, "PNG")
    return file.getvalue()
