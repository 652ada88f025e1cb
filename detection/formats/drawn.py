"""Objects as annotation programs draw them, before anybody knows all names of classes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vovnet.detection.formats.folders import Tree, choose_split, split_of
from vovnet.detection.formats.labels import CategoryIds, Labels
from vovnet.detection.formats.painted import cut_out, in_image
from vovnet.errors import InputError
from vovnet.results.rle import encode_part


@dataclass
class DrawnObject:
    """An object of an image."""

    name: str
    """Its class."""
    place: tuple[str, int]
    box: list[float] | None
    """x, y, width, height in pixels, or None if they are not numbers."""
    polygons: list[list[float]] = field(default_factory=list)
    pixels: NDArray[np.bool_] | None = None
    """A mask (h, w), …"""
    corner: tuple[int, int] = (0, 0)
    """… and the row and column of its first pixel in the image."""
    problem: str | None = None
    """Why it is neither a box, a polygon nor a mask; the rest is not used then."""

    def paint(self, pixels: NDArray[np.bool_] | None, left: float, top: float, expected: str) -> None:
        """Set the mask and its box, or say what was expected.

        Args:
            pixels: (h, w), or None if it could not be read.
            left: Of the first pixel in the image.
            top: The same.
            expected: For the message.
        """
        if pixels is None or not pixels.any():
            self.problem = f"mask: expected {expected}" if pixels is None else "mask: no pixel is set"
            return
        self.pixels, (row, column) = cut_out(pixels)  # masks of whole images would fill the memory
        self.corner = (round(top) + row, round(left) + column)
        self.box = [left + column, top + row, float(self.pixels.shape[1]), float(self.pixels.shape[0])]


@dataclass
class DrawnImage:
    """An image and its objects."""

    file: str
    """The file of labels, relative to the dataset's folder."""
    image: str
    """The image as the file names it."""
    size: tuple[int, int] | None
    """(width, height) in pixels, if the file says so."""
    objects: list[DrawnObject] = field(default_factory=list)


DrawnFile = Callable[[Path, str], Iterable[DrawnImage]]
"""Reads a file of labels, given the dataset's folder and the file's name relative to it."""


def read_drawn(
    path: Path, files: Iterable[str], read: DrawnFile, split: str | None, default: str | None, root: Path | None
) -> Labels:
    """Read files of labels in which every object has the name of its class. Arguments are those of the readers.

    Classes get ids in the alphabetical order of all splits' names. A split is a subfolder of that name.
    """
    folder = path if path.is_dir() else path.parent
    problems: list[tuple[str, str]] = []
    images: list[DrawnImage] = []
    for file in files:
        try:
            images += read(folder, file)
        except InputError as error:
            if path.is_file():
                raise
            problems.append((file, str(error)))
    splits = sorted({part for one in images for part in one.file.split("/")[:-1] if split_of(part)})
    chosen = choose_split(splits, split, default, str(path))
    ids = CategoryIds({one.name for image in images for one in image.objects if one.name})
    labels = Labels(f"{path} ({chosen})" if chosen else str(path), root or folder, ids.categories)
    tree = Tree(labels.root)
    for image in images:
        if chosen is None or chosen in image.file.split("/")[:-1]:
            _add(labels, ids, tree, image)
    for file, text in problems:
        if chosen is None or chosen in file.split("/")[:-1]:
            labels.add_problem("label_file", file, text)
    if not labels.images and not labels.problems:
        raise InputError(f"{labels.name}: no image is labelled in it")
    return labels


def _add(labels: Labels, ids: CategoryIds, tree: Tree, image: DrawnImage) -> None:
    name = locate_image(tree, image.file, image.image)
    size = image.size or labels.size_of(name)
    image_id = labels.add_image(name, size)
    for one in image.objects:
        if one.problem is not None:
            labels.add_problem("bad_shape", f"{one.place[0]}:{one.place[1]}", one.problem)
            continue
        fields: dict[str, Any] = {"segmentation": one.polygons} if one.polygons else {}
        if one.pixels is not None and size is not None and not one.polygons:
            height_width = (size[1], size[0])
            counts = encode_part(*in_image(one.pixels, one.corner, height_width), height_width)
            fields["segmentation"] = {"size": list(height_width), "counts": counts.decode("ascii")}
        # No category has the id 0, which stands for an object without a class here.
        labels.add(image_id, ids[one.name] if one.name else 0, one.box, one.place, **fields)


def locate_image(tree: Tree, file: str, stated: str) -> str:
    """Return an image relative to the root: as a file of labels names it, or its last part beside it or in ``images``.

    Programs write paths of the machine on which they ran (``../images/a.jpg``, ``C:\\cells\\a.jpg``,
    ``/data/upload/1/a.jpg``). Only the last part of such a path is used, so that nothing leads out of the folder. What
    is not found is returned as the file names it.
    """
    folder = file.rpartition("/")[0]
    plain = stated.replace("\\", "/")
    outside = plain.startswith("/") or ".." in plain.split("/") or ":" in plain.split("/")[0]
    names = [] if outside else [plain]
    names.append(plain.split("/")[-1])
    above = folder.rpartition("/")[0]
    folders = dict.fromkeys(
        [folder, "", *(f"{base}/{name}".strip("/") for base in (folder, above) for name in ("images", "JPEGImages"))]
    )
    for name in names:
        for one in folders:
            candidate = f"{one}/{name}" if one else name
            if name and tree.has(candidate):
                return candidate
    return stated if outside or not folder else f"{folder}/{plain}"
