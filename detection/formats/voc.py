"""PASCAL VOC's labels: an ``.xml`` file for each image, with boxes of corners in pixels.

The layout is VOC's (``Annotations``, ``JPEGImages``, ``ImageSets/Main/train.txt``) or Roboflow's and LabelImg's (the
files beside the images, in a folder for each split).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element

import numpy as np
from numpy.typing import NDArray

from vovnet.detection.formats.folders import Tree, choose_split, split_of
from vovnet.detection.formats.labels import CategoryIds, Labels
from vovnet.detection.formats.painted import cut_out
from vovnet.detection.formats.text import number_of, read_text, read_xml
from vovnet.errors import InputError
from vovnet.images.reading import read_indices
from vovnet.results.rle import encode_part

_SETS = "/ImageSets/Main/"
_BORDER = 255
"""Between objects, and where nobody decided."""


def read_voc(path: Path, split: str | None, default: str | None, root: Path | None = None) -> Labels:
    """Read a dataset in VOC's format. Classes get ids in the alphabetical order of all splits' names.

    Boxes are the corners as they stand, as other programs than VOC's write them. Only where ``<database>`` says that a
    file is VOC's own, corners are pixels counted from 1: xmin and ymin become one less, as in Detectron2. Objects that
    are ``difficult`` become crowds, which training leaves out and evaluation does not count, as in VOC. Pixels of
    ``SegmentationObject/NAME.png`` with the value k are the mask of the file's k-th object.

    Args:
        path: The folder.
        split: The name of a file in ``ImageSets/Main`` or of a subfolder; None takes ``default`` if there is such a
            split, else all files.
        default: See above.
        root: The folder of the images; None looks for them in ``path``.

    Raises:
        InputError: There is no such split, or no file at all.
    """
    tree = Tree(path)
    files = tree.named(suffix=".xml")
    sets, folders = _lists(tree), _folders(files)
    chosen = choose_split([*sets, *folders], split, default, f"voc: '{path}'")
    documents, problems = _read_all(path, files)
    names = {name for root_element in documents.values() for name in _names(root_element)}
    ids = CategoryIds(names)
    labels = Labels(f"{path} ({chosen})" if chosen else str(path), root or path, ids.categories)
    images = Tree(root) if root else tree
    reader = _Reader(labels, ids, images, tree)
    for file in _of_split(tree, files, chosen, sets, reader):
        if file in documents:
            reader.read(file, documents[file])
        elif file in problems:
            labels.add_problem("label_file", file, problems[file])
    if not labels.images and not labels.problems:
        raise InputError(f"voc: '{labels.name}': expected .xml files with <annotation> in this folder or below it")
    return labels


def voc_splits(tree: Tree) -> list[str]:
    """Return the names of a dataset's splits: of lists of images, or else of subfolders."""
    return [*_lists(tree)] or _folders(tree.named(suffix=".xml"))


def _lists(tree: Tree) -> dict[str, str]:
    """Return the lists in ``ImageSets/Main`` by their names. ``cat_train.txt``, which is of one class, is none."""
    lists: dict[str, str] = {}
    for name in tree.named(suffix=".txt"):
        _, found, last = f"/{name}".partition(_SETS)
        if found and "/" not in last and "_" not in last:
            lists.setdefault(last[:-4], name)
    return lists


def _folders(files: Sequence[str]) -> list[str]:
    return sorted({part for file in files for part in file.split("/")[:-1] if split_of(part)})


def _read_all(path: Path, files: Sequence[str]) -> tuple[dict[str, Element], dict[str, str]]:
    """Return the files that are VOC's by name, and for each that is not XML why."""
    documents: dict[str, Element] = {}
    problems: dict[str, str] = {}
    for file in files:
        try:
            found = read_xml(path / file)
        except InputError as error:
            problems[file] = str(error)
            continue
        if found.tag == "annotation":
            documents[file] = found
        elif found.tag != "annotations":  # CVAT's, which has a reader of its own
            problems[file] = f"expected <annotation>, got <{found.tag}>"
    return documents, problems


def _of_split(
    tree: Tree, files: Sequence[str], chosen: str | None, sets: dict[str, str], reader: _Reader
) -> Sequence[str]:
    if chosen is None:
        return files
    if chosen not in sets:
        return [file for file in files if chosen in file.split("/")[:-1]]
    by_stem = {os.path.splitext(file)[0].split("/")[-1]: file for file in files}
    wanted = []
    for line in read_text(tree.root / sets[chosen]).splitlines():
        # A second column says whether a class is on the image.
        name = line.split()[0] if line.split() else ""
        if name and name in by_stem:
            wanted.append(by_stem[name])
        elif name:
            reader.labels.add_problem("label_file", name, f"{sets[chosen]} names it, and there is no {name}.xml")
    return wanted


def _names(document: Element) -> list[str]:
    return [name for one in document.iter("object") if (name := _text(one, "name"))]


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


@dataclass
class _Reader:
    labels: Labels
    ids: CategoryIds
    images: Tree
    tree: Tree

    def read(self, file: str, document: Element) -> None:
        width, height = (number_of(_text(document, f"size/{key}")) for key in ("width", "height"))
        whole = width and height and width.is_integer() and height.is_integer()
        size = (int(width or 0), int(height or 0)) if whole else None
        image_id = self.labels.add_image(self._image_of(file, _text(document, "filename")), size)
        one = 1 if "VOC" in _text(document, "source/database") else 0
        objects = list(document.iter("object"))
        masks = self._masks_of(file, size, len(objects))
        for number, entry in enumerate(objects, start=1):
            name = _text(entry, "name")
            fields: dict[str, Any] = {}
            if _text(entry, "difficult") == "1":
                fields["iscrowd"] = 1
            if number in masks:
                fields["segmentation"] = masks[number]
            elif polygon := _polygon(entry.find("polygon")):
                fields["segmentation"] = [polygon]
            # No category has the id 0, which stands for an object without a name here.
            category = self.ids[name] if name else 0
            self.labels.add(image_id, category, _box(entry.find("bndbox"), one), (file, number), **fields)

    def _masks_of(self, file: str, size: tuple[int, int] | None, count: int) -> dict[int, dict[str, Any]]:
        """Return the mask of each object of a file, by its number from 1, as far as ``SegmentationObject`` has it."""
        folder, _, last = file.rpartition("/")
        name = _join(_join(folder.rpartition("/")[0], "SegmentationObject"), f"{last[:-4]}.png")
        if not self.tree.has(name):
            return {}
        try:
            values = read_indices(self.tree.root / name)
        except InputError as error:
            self.labels.add_problem("bad_shape", name, str(error))
            return {}
        height, width = values.shape
        if size is not None and size != (width, height):
            self.labels.add_problem("bad_shape", name, f"{width}×{height} pixels, and {file} says {size[0]}×{size[1]}")
            return {}
        numbers = set(np.unique(values).tolist()) - {0, _BORDER}
        if numbers and max(numbers) > count:
            self.labels.add_problem("bad_shape", name, f"has {max(numbers)} objects, and {file} {count}")
            return {}
        return {number: _mask(values == number) for number in numbers}

    def _image_of(self, file: str, stated: str) -> str:
        """Return the image of a file: the one it names beside it or in ``JPEGImages``, or the one with its stem."""
        folder, _, last = file.rpartition("/")
        above = folder.rpartition("/")[0]
        if self.images is not self.tree:
            folder = above = ""
        folders = [folder, *(_join(base, name) for base in (above, folder) for name in ("JPEGImages", "images")), ""]
        for one in folders if stated and ".." not in stated else ():
            if self.images.has(_join(one, stated)):
                return _join(one, stated)
        stem = last[:-4]
        found = next((name for one in folders if (name := self.images.image_beside(one, stem))), None)
        return found or (stated if stated.startswith(("/", "..")) else _join(folder, stated or f"{stem}.jpg"))


def _mask(pixels: NDArray[np.bool_]) -> dict[str, Any]:
    height, width = pixels.shape
    counts = encode_part(*cut_out(pixels), (height, width))
    return {"size": [height, width], "counts": counts.decode("ascii")}


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _box(element: Element | None, one: int) -> list[float] | None:
    if element is None:
        return None
    corners = [number_of(_text(element, key)) for key in ("xmin", "ymin", "xmax", "ymax")]
    x0, y0, x1, y1 = corners
    if x0 is None or y0 is None or x1 is None or y1 is None:
        return None
    x0, y0 = x0 - one, y0 - one
    return [x0, y0, x1 - x0, y1 - y0]


def _polygon(element: Element | None) -> list[float]:
    """Return Roboflow's ``<polygon><x1>…</x1><y1>…</y1>…``, or nothing."""
    points: list[float] = []
    while element is not None:
        number = len(points) // 2 + 1
        x, y = (number_of(_text(element, f"{axis}{number}")) for axis in "xy")
        if x is None or y is None:
            break
        points += [x, y]
    return points
