"""What the writers of all formats share: boxes and outlines of objects, and files of labels."""

from __future__ import annotations

from pathlib import Path

from vovnet.detection.data.checked_images import CheckedImage, CheckedObject


def clipped_box(one: CheckedObject, image: CheckedImage) -> list[float]:
    """Return x, y, width, height in pixels of the part of a box that lies in its image; as it is if all does."""
    x, y, w, h = one.box
    x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + w, image.width), min(y + h, image.height)
    inside = x0 == x and y0 == y and x1 == x + w and y1 == y + h
    return list(one.box) if inside else [x0, y0, x1 - x0, y1 - y0]


def outline(one: CheckedObject) -> list[float] | None:
    """Return the polygon x0, y0, … of an object, or None if it has none; run lengths are none.

    Several polygons become one that goes from the first point of the first to each of the others and back, as YOLO's
    readers take one polygon an object.
    """
    parts = one.segmentation
    if not isinstance(parts, list) or one.empty_mask or not parts:
        return None
    if len(parts) == 1:
        return list(parts[0])
    joined: list[float] = []
    for part in parts:
        joined += [*parts[0][:2], *part, *part[:2], *parts[0][:2]]
    return joined


def write_labels(path: Path, text: str) -> None:
    """Write a file of labels. It lies in a folder that is moved to its place as a whole, so that it needs no flush."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8", newline="\n")
