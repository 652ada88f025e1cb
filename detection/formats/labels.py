"""What every reader returns: the lists of COCO JSON, where each entry stands, and what could not be read."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from vovnet.detection.config.categories import Category
from vovnet.errors import InputError
from vovnet.images.folder import ImageFolder
from vovnet.images.reading import upright_size


class Problem(NamedTuple):
    """Something that a reader could not use."""

    kind: str
    """A key of :data:`vovnet.detection.data.report.KINDS`."""
    entry_id: int | str
    text: str
    """What is wrong with it, for people."""


class Places:
    """Where annotations stand, by their ids 1, 2, …: a file and the number of a line or object in it."""

    def __init__(self) -> None:
        self._files: list[str] = []
        self._starts: list[int] = []
        self._numbers = array("l")

    def __len__(self) -> int:
        return len(self._numbers)

    def add(self, file: str, number: int) -> int:
        """Add the place of the next annotation and return its id."""
        if not self._files or self._files[-1] != file:
            self._files.append(file)
            self._starts.append(len(self._numbers))
        self._numbers.append(number)
        return len(self._numbers)

    def __getitem__(self, annotation_id: int) -> str:
        position = annotation_id - 1
        if not 0 <= position < len(self._numbers):
            raise IndexError(annotation_id)
        return f"{self._files[bisect_right(self._starts, position) - 1]}:{self._numbers[position]}"


@dataclass
class Labels:
    """The labels of a dataset or of one split of it, in the lists of COCO JSON."""

    name: str
    """What messages call them."""
    root: Path
    """The folder that ``file_name`` entries are relative to."""
    categories: list[Category]
    images: list[dict[str, Any]] = field(default_factory=list)
    annotations: list[dict[str, Any]] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    places: Places = field(default_factory=Places)
    notes: list[str] = field(default_factory=list)
    """Facts to know that are not problems, a line each."""
    _folder: ImageFolder | None = None

    def add_image(self, file_name: str, size: tuple[int, int] | None = None) -> int:
        """Add an image and return its id.

        Args:
            file_name: Relative to the root. Nobody has looked whether it stays there.
            size: (width, height) in pixels. None leaves them to whoever opens the file.
        """
        entry: dict[str, Any] = {"id": len(self.images) + 1, "file_name": file_name}
        if size is not None:
            entry["width"], entry["height"] = size
        self.images.append(entry)
        return len(self.images)

    def size_of(self, file_name: str) -> tuple[int, int] | None:
        """Return an image's (width, height), or None if it is missing or unreadable, which the checks find again."""
        if self._folder is None:
            self._folder = ImageFolder(self.root)
        try:
            path = self._folder.find(file_name)
            return None if path is None else upright_size(path)
        except InputError:
            return None

    def add(
        self, image_id: int, category_id: int, box: Sequence[float] | None, place: tuple[str, int], **fields: Any
    ) -> None:
        """Add an object.

        Args:
            image_id: Of :meth:`add_image`.
            category_id: Of a category, or of none, which the checks report.
            box: x, y, width, height in pixels; None if it is not four numbers, which the checks report.
            place: The file, relative to the root, and the number of the line or object in it.
            **fields: More fields of COCO: ``segmentation``, ``keypoints``, ``iscrowd``.
        """
        number = self.places.add(*place)
        shape = None if box is None else list(box)
        entry = {"id": number, "image_id": image_id, "category_id": category_id, "bbox": shape, **fields}
        self.annotations.append(entry)

    def add_problem(self, kind: str, place: str, text: str = "") -> None:
        """Add something that cannot be used: a line, an object or a whole file, at a place."""
        self.problems.append(Problem(kind, place, text))


class CategoryIds:
    """Ids 1, 2, … for the names of a format without ids, in alphabetical order."""

    def __init__(self, names: set[str]) -> None:
        self.categories: list[Category] = [
            {"id": number, "name": name} for number, name in enumerate(sorted(names), start=1)
        ]
        self._ids = {one["name"]: one["id"] for one in self.categories}

    def __getitem__(self, name: str) -> int:
        return self._ids[name]
