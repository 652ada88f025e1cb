"""Read a file of COCO JSON as a whole: its text, its three lists, and its categories."""

from __future__ import annotations

import gzip
import json
import os
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from vovnet.detection.config.categories import (
    MOST_KEYPOINTS,
    Category,
    keypoint_problem,
    numbered_keypoints,
    plain_category,
)
from vovnet.detection.data.fields import whole_number
from vovnet.detection.formats.labels import Places, Problem
from vovnet.errors import InputError, is_text, reason, shown
from vovnet.folders.home import expand_home

GZIP_FLOOR, GZIP_RATIO, GZIP_CEILING = 2**28, 100, 2**32
"""A gzip file may unpack to 256 MiB, or to 100 times its size, but to no more than 4 GiB. COCO's own files shrink to a
fifth; a file that was made to fill the memory, to a thousandth."""


@dataclass(slots=True)
class AnnotationFile:
    """The three lists of a COCO JSON file. Images and annotations are as in the file, categories are validated."""

    images: list[Any]
    annotations: list[Any]
    categories: list[Category]
    unsound_keypoints: dict[int, str] = field(default_factory=dict)
    """Category id to what is wrong with its keypoints or skeleton, which are not used then."""
    problems: list[Problem] = field(default_factory=list)
    """What the reader of another format could not use."""
    places: Places | None = None
    """Where annotations stand in files of another format."""
    notes: list[str] = field(default_factory=list)
    """Facts that the reader of another format found, a line each."""

    @property
    def has_masks(self) -> bool:
        """True if any annotation has a segmentation, usable or not."""
        return any(isinstance(entry, dict) and has_segmentation(entry) for entry in self.annotations)

    @property
    def has_keypoints(self) -> bool:
        """True if any annotation has keypoints, usable or not."""
        return any(isinstance(entry, dict) and has_keypoints(entry) for entry in self.annotations)


def has_keypoints(entry: dict[str, Any]) -> bool:
    """True if an annotation has keypoints, usable or not: null and empty lists are none."""
    return entry.get("keypoints") not in (None, [])


def has_segmentation(entry: dict[str, Any]) -> bool:
    """True if an annotation has a segmentation, usable or not: null and empty lists or objects are none."""
    return entry.get("segmentation") not in (None, [], {})


def read_annotations(path: str | Path) -> AnnotationFile:
    """Read a COCO JSON file and validate its form and its categories, but not the images and annotations.

    The text is UTF-8, UTF-16 or UTF-32, with or without a byte order mark, and may be compressed by gzip.

    Raises:
        InputError: The file as a whole cannot be used.
    """
    try:
        content = json.loads(_text(path))
    except (ValueError, RecursionError) as error:  # ValueError includes integers of thousands of digits.
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: is not valid JSON ({reason(error)})") from error
    if not isinstance(content, dict):
        raise InputError(
            f"{path}: expected a COCO JSON object with images, annotations and categories, got {_type(content)}"
        )
    for key in ("images", "annotations", "categories"):
        if key not in content:
            raise InputError(f"{path}: key '{key}' is missing (COCO JSON has images, annotations and categories)")
        if not isinstance(content[key], list):
            raise InputError(f"{path}: key '{key}' must be a list, got {_type(content[key])}")
        if key != "annotations" and not content[key]:
            raise InputError(f"{path}: empty dataset: key '{key}' is an empty list")
    categories = _check_categories(content["categories"], path)
    unsound: dict[int, str] = {}
    _add_keypoints(categories, content["categories"], unsound)
    return AnnotationFile(content["images"], content["annotations"], categories, unsound)


def _text(path: str | Path) -> str:
    """Return the text of a file. Its bytes are released before the text is parsed."""
    try:
        with expand_home(path).open("rb") as file:
            head = file.peek(4)
            if head.startswith(b"PK\x03\x04"):
                raise InputError(f"{path}: is a ZIP archive; unpack it, and name the JSON file in it")
            data: bytes | bytearray = _unpacked(file, path) if head.startswith(b"\x1f\x8b") else file.read()
    except OSError as error:
        raise InputError(f"{path}: annotations cannot be read ({error.strerror or error})") from error
    return data.decode(json.detect_encoding(bytes(data[:4])))


def _unpacked(file: BinaryIO, path: str | Path) -> bytearray:
    """Return the contents of a gzip file, up to a limit."""
    limit = min(max(GZIP_FLOOR, GZIP_RATIO * os.fstat(file.fileno()).st_size), GZIP_CEILING)
    data = bytearray()
    try:
        with gzip.GzipFile(fileobj=file) as unpacking:
            while len(data) <= limit and (part := unpacking.read(2**20)):
                data += part
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: the gzip file is truncated or damaged ({reason(error)})") from error
    if len(data) > limit:
        raise InputError(
            f"{path}: the gzip file unpacks to more than {limit // 2**20} MiB; unpack it with gunzip if you trust it"
        )
    return data


def _check_categories(categories: Sequence[Any], path: str | Path) -> list[Category]:
    names: dict[int, str] = {}
    for position, entry in enumerate(categories):
        where = f"{path}: categories[{position}]"
        number = whole_number(entry.get("id")) if isinstance(entry, dict) else None
        if number is None or not is_text(entry.get("name")):
            raise InputError(
                f"{where}: expected an object with a whole-number 'id' and a text 'name', got {shown(entry)}"
            )
        name = entry["name"]
        if names.setdefault(number, name) != name:
            raise InputError(f"{where}: id {number} is both '{shown(names[number])}' and '{shown(name)}'")
    return [{"id": number, "name": name} for number, name in names.items()]


def _add_keypoints(categories: Sequence[Category], entries: Sequence[Any], unsound: dict[int, str]) -> None:
    """Add the sound keypoints and skeletons of the file's entries to the categories."""
    by_id = {category["id"]: category for category in categories}
    for entry in entries:
        category = by_id[whole_number(entry["id"]) or 0]
        problem = keypoint_problem(entry)
        if problem is None:
            category.update(plain_category({**entry, **category}))
            continue
        unsound.setdefault(category["id"], problem)
        if problem.startswith("skeleton"):
            category.update(plain_category({**entry, **category, "skeleton": None}))


def name_keypoints(content: AnnotationFile) -> list[int]:
    """Number the keypoints of categories that do not name them, and return the ids of these categories.

    Their number is the one that most of the annotations have.
    """
    nameless = {one["id"]: one for one in content.categories if "keypoints" not in one}
    lengths: dict[int, Counter[int]] = {}
    for entry in content.annotations if nameless else ():
        if isinstance(entry, dict) and has_keypoints(entry) and isinstance(entry["keypoints"], list):
            number = whole_number(entry.get("category_id"))
            if number in nameless and len(entry["keypoints"]) % 3 == 0:
                lengths.setdefault(number, Counter())[len(entry["keypoints"]) // 3] += 1
    for number, found in lengths.items():
        count = min(found.most_common(1)[0][0], MOST_KEYPOINTS)
        nameless[number]["keypoints"] = numbered_keypoints(count)
    return sorted(lengths)


def _type(value: object) -> str:
    return {dict: "an object", list: "a list", str: "a text", type(None): "null"}.get(type(value), "a number")
