"""What the writers of all formats share: boxes and outlines of objects, and files of labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vovnet.detection.data.checked_images import CheckedImage, CheckedObject
from vovnet.detection.data.masks import decode_masks
from vovnet.results.polygons import outlines


def clipped_box(one: CheckedObject, image: CheckedImage) -> list[float]:
    """Return x, y, width, height in pixels of the part of a box that lies in its image; as it is if all does."""
    x, y, w, h = one.box
    x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + w, image.width), min(y + h, image.height)
    inside = x0 == x and y0 == y and x1 == x + w and y1 == y + h
    return list(one.box) if inside else [x0, y0, x1 - x0, y1 - y0]


def polygons(one: CheckedObject, image: CheckedImage) -> list[list[float]]:
    """Return the polygons x0, y0, … of an object's mask, those around it if it is given as run lengths."""
    if one.segmentation is None or one.empty_mask:
        return []
    if isinstance(one.segmentation, list):
        return [list(part) for part in one.segmentation]
    return outlines(decode_masks([one.segmentation], image.height, image.width)[0].numpy().astype(np.bool_))


def joined(parts: Sequence[list[float]]) -> list[float]:
    """Return one polygon that goes from the first point of the first to each of the others and back.

    YOLO's readers take one polygon an object.
    """
    if len(parts) == 1:
        return parts[0]
    return [value for part in parts for value in (*parts[0][:2], *part, *part[:2], *parts[0][:2])]


def write_labels(path: Path, text: str) -> None:
    """Write a file of labels. It lies in a folder that is moved to its place as a whole, so that it needs no flush."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
