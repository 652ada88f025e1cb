"""YOLO's labels: a ``.txt`` file for each image, a line for each object, in fractions of the image's size.

A line is the number of a class and a box (centre x, centre y, width, height), a polygon (x, y of three or more points),
or a box and its keypoints. One file may mix boxes and polygons. The layout is Ultralytics'
(https://docs.ultralytics.com/datasets/detect): ``labels`` in place of ``images`` in the path of an image, or beside it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vovnet.detection.config.categories import Category
from vovnet.detection.formats.folders import Tree, choose_split
from vovnet.detection.formats.labels import Labels
from vovnet.detection.formats.shapes import enclosing_box
from vovnet.detection.formats.text import number_of, read_text
from vovnet.detection.formats.yolo_config import YoloConfig, read_config
from vovnet.errors import InputError, shown

_PIXELS = 2.0
"""A coordinate above this is one in pixels, not a fraction: no box begins so far outside of its image."""

_OTHER_TEXTS = {"classes.txt", "labels.txt", "notes.txt", "readme.txt", "license.txt", "requirements.txt"}


def read_yolo(path: Path, split: str | None, default: str | None, root: Path | None = None) -> Labels:
    """Read a YOLO dataset.

    Args:
        path: ``data.yaml``, ``obj.data``, or a folder with one of these or with ``classes.txt``.
        split: ``train``, ``val`` or ``test``; None takes ``default`` if the dataset has it, else all images.
        default: See above.
        root: The folder that the paths of the file are relative to; None is the file's own.

    Raises:
        InputError: The dataset as a whole cannot be used, or has oriented boxes.
    """
    config = read_config(path, root)
    known = [one for one in config.splits if one]
    chosen = choose_split(known, split, default, config.name)
    if config.task == "obb":
        _refuse_oriented(config.name)
    tree = Tree(config.root)
    entries = config.splits[chosen] if chosen else [one for parts in config.splits.values() for one in parts]
    labels = Labels(f"{config.name} ({chosen})" if chosen else config.name, config.root, _categories(config))
    reader = _Reader(labels, config, tree)
    for entry in dict.fromkeys(entries):
        reader.read(entry)
    if config.task != "segment" and reader.turned and reader.rectangles == reader.objects:
        _refuse_oriented(config.name)
    if not labels.images and not labels.problems:
        raise InputError(f"{labels.name}: no images in {', '.join(one or '.' for one in entries) or config.root}")
    if reader.backgrounds:
        labels.notes.append(f"{reader.backgrounds} images have no file of labels: they count as images without objects")
    return labels


def _refuse_oriented(name: str) -> None:
    raise InputError(
        f"{name}: oriented boxes (class and four corners) are not trained here; give upright boxes, or, if these are "
        "polygons, write 'task: segment' into the file"
    )


def _categories(config: YoloConfig) -> list[Category]:
    categories: list[Category] = [{"id": number, "name": name} for number, name in config.names.items()]
    for one in categories if config.keypoint_names else ():
        one["keypoints"] = list(config.keypoint_names or ())
    return categories


@dataclass
class _Reader:
    labels: Labels
    config: YoloConfig
    tree: Tree
    objects: int = 0
    rectangles: int = 0
    """Objects that are given by the corners of a rectangle."""
    turned: int = 0
    """Those of them whose rectangle is not upright."""
    backgrounds: int = 0

    def __post_init__(self) -> None:
        self.seen: set[str] = set()

    def read(self, entry: str) -> None:
        """Read the images of a folder, or those that a list names."""
        if entry.lower().endswith(".txt"):
            for name in read_text(self.config.root / entry).splitlines():
                if name.strip():
                    self._image(self._listed(name.strip()))
            return
        names = self.tree.images(entry)
        for name in names:
            self._image(name)
        self._orphans(entry, names)

    def _listed(self, name: str) -> str:
        """Return a name of a list relative to the root. CVAT writes ``data/`` before each, and is not followed."""
        plain = name[2:] if name.startswith("./") else name
        if not self.tree.has(plain) and plain.startswith("data/") and self.tree.has(plain[5:]):
            return plain[5:]
        return plain

    def _image(self, name: str) -> None:
        if name in self.seen:
            return
        self.seen.add(name)
        size = self.labels.size_of(name)
        file = next((one for one in label_files(name) if self.tree.has(one)), None)
        if file is None:
            self.backgrounds += size is not None
            self.labels.add_image(name, size)
            return
        try:
            lines = read_text(self.config.root / file).splitlines()
        except InputError as error:
            self.labels.add_problem("label_file", file, str(error))
            return
        image_id = self.labels.add_image(name, size)
        for number, line in enumerate(lines, start=1):
            if line.strip():
                self._line(image_id, size or (1, 1), line.split(), (file, number))

    def _line(self, image_id: int, size: tuple[int, int], parts: Sequence[str], place: tuple[str, int]) -> None:
        numbers = [number_of(part) for part in parts]
        category, values = numbers[0], [one for one in numbers[1:] if one is not None]
        where = f"{place[0]}:{place[1]}"
        problem = self._problem(numbers)
        if problem or category is None:
            self.labels.add_problem("bad_line", where, problem or "")
            return
        if max(values[: 4 if self.config.keypoints else len(values)]) > _PIXELS:
            self.labels.add_problem("pixel_box", where, f"{shown(' '.join(parts))}, where 0..1 is expected")
            return
        self.objects += 1
        fields: dict[str, Any] = {}
        if len(values) == 4 or self.config.keypoints:
            cx, cy, w, h = values[:4]
            box = [(cx - w / 2) * size[0], (cy - h / 2) * size[1], w * size[0], h * size[1]]
            if self.config.keypoints and len(values) > 4:
                fields["keypoints"] = _keypoints(values[4:], self.config.keypoints[1], size)
        else:
            points = [value * size[axis % 2] for axis, value in enumerate(values)]
            box = enclosing_box(points)
            fields["segmentation"] = [points]
            rectangle, turned = is_rectangle(points)
            self.rectangles += rectangle
            self.turned += turned
        self.labels.add(image_id, int(category), box, place, **fields)

    def _problem(self, numbers: Sequence[float | None]) -> str | None:
        """Return what is wrong with the form of a line, or None."""
        if None in numbers or not all(math.isfinite(one) for one in numbers if one is not None):
            return "expected finite numbers alone"
        if not float(numbers[0] or 0).is_integer():
            return f"expected the whole number of a class first, got {numbers[0]}"
        count = len(numbers) - 1
        if self.config.keypoints:
            expected = 4 + self.config.keypoints[0] * self.config.keypoints[1]
            return None if count in (4, expected) else f"{count} numbers after the class, expected 4 or {expected}"
        if count == 4 or (count >= 6 and count % 2 == 0):
            return None
        hint = "; is the last one a score?" if count == 5 else ""
        return f"{count} numbers after the class, expected 4 (a box) or 6, 8, … (a polygon){hint}"

    def _orphans(self, entry: str, names: Sequence[str]) -> None:
        """Add the files of labels that have no image."""
        expected = {one for name in names for one in label_files(name)}
        folders = {os.path.dirname(label_files(name)[0]) for name in names}
        folders.add(os.path.dirname(label_files(f"{entry}/x" if entry else "x")[0]))
        for folder in sorted(folders & self.tree.files.keys()):
            if "labels" not in folder.split("/"):
                continue
            for name in self.tree.files[folder]:
                path = f"{folder}/{name}"
                if name.endswith(".txt") and name.lower() not in _OTHER_TEXTS and path not in expected:
                    self.labels.add_problem("missing_image", path, "a file of labels that has no image")


def label_files(name: str) -> list[str]:
    """Return where the labels of an image may lie: ``labels`` for its last ``images``, or beside it."""
    stem = os.path.splitext(name)[0]
    parts = stem.split("/")
    found = [f"{stem}.txt"]
    if "images" in parts[:-1]:
        last = len(parts) - 2 - parts[-2::-1].index("images")
        found.insert(0, "/".join([*parts[:last], "labels", *parts[last + 1 :]]) + ".txt")
    return found


def _keypoints(values: Sequence[float], numbers: int, size: tuple[int, int]) -> list[float]:
    """Return x, y in pixels and the visibility of each keypoint. Without one, points at 0, 0 are not labelled."""
    found: list[float] = []
    for start in range(0, len(values), numbers):
        x, y, *rest = values[start : start + numbers]
        visible = rest[0] if rest else 2.0 * (x > 0 or y > 0)
        found += [x * size[0], y * size[1], int(visible) if float(visible).is_integer() else visible]
    return found


def is_rectangle(points: Sequence[float]) -> tuple[bool, bool]:
    """Return whether points x0, y0, … are a rectangle's corners, within a pixel or a hundredth, and one not upright."""
    if len(points) != 8:
        return False, False
    corners = list(zip(points[::2], points[1::2], strict=True))
    (ax, ay), (bx, by), (cx, cy), (dx, dy) = corners
    diagonals = math.dist(corners[0], corners[2]), math.dist(corners[1], corners[3])
    tolerance = max(1.0, 0.01 * max(diagonals))
    same_middle = math.dist(((ax + cx) / 2, (ay + cy) / 2), ((bx + dx) / 2, (by + dy) / 2)) <= tolerance
    rectangle = same_middle and abs(diagonals[0] - diagonals[1]) <= tolerance
    return rectangle, rectangle and min(abs(ax - bx), abs(ay - by)) > tolerance
