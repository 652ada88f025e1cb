"""Datasets of the Hugging Face Hub with images and boxes, kept in the user's cache as COCO JSON.

A dataset is downloaded once, with the package ``datasets``, and written to the cache as images and a COCO file. After
that neither the network nor the package is needed. With ``HF_HUB_OFFLINE=1`` only what is in a cache is read.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from vovnet.detection.config.sources import DataSource
from vovnet.detection.formats.folders import choose_split, named_split
from vovnet.detection.formats.text import number_of
from vovnet.errors import InputError, absent_package, install_advice, reason, shown
from vovnet.files import write_json, write_text
from vovnet.folders.home import expand_home, user_cache
from vovnet.folders.locks import held_lock
from vovnet.terminal.streams import say

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(@[\w./-]+)?")
_OBJECTS = ("objects", "annotations", "faces", "annotation")
_CLASSES = ("category", "categories", "label", "labels", "category_id", "class", "classes")
_BOXES = ("bbox", "bboxes", "boxes", "box")
_SPLITS = "splits.txt"  # beside what is kept of a dataset: the names of all its splits


def hub_source(name: str, split: str | None, default: str | None) -> DataSource:
    """Return the COCO file of a split of a dataset, after it was written to the cache if it is not there.

    Args:
        name: ``ORG/NAME`` or ``ORG/NAME@REVISION`` on the Hub, or a local folder in one of the forms that
            ``datasets.load_dataset`` reads.
        split: The name of a split; None takes ``default``.
        default: ``train``, or ``val``, for which ``test`` will do; None is ``train``.

    Raises:
        InputError: There is no such dataset or split, it has no images and boxes, or ``datasets`` is not installed.
    """
    local, folder = _places(name)
    known = sorted(path.stem for path in folder.glob("*.json"))
    found = named_split(known, split or default or "train")
    if found is None:
        found = _download(name, local, folder, split, default or "train")
    return DataSource(images=str(folder / found), annotations=str(folder / f"{found}.json"))


def hub_splits(name: str) -> list[str]:
    """Return the names of the splits of a dataset, from the cache if it has been read before.

    Raises:
        InputError: As for :func:`hub_source`.
    """
    local, folder = _places(name)
    kept = folder / _SPLITS
    return kept.read_text(encoding="utf-8").split() if kept.exists() else list(_loaded(name, local, folder))


def _places(name: str) -> tuple[Path, Path]:
    """Return the local folder that a name may be, and the folder in the cache."""
    local = expand_home(name)
    if not local.is_dir() and _NAME.fullmatch(name) is None:
        raise InputError(f"hf: expected ORG/NAME or ORG/NAME@REVISION, got {shown(name)}")
    title = re.sub(r"[^\w.-]+", "--", os.path.realpath(local) if local.is_dir() else name).strip("-")
    return local, user_cache() / "vovnet" / "datasets" / title[-150:]


def _loaded(name: str, local: Path, folder: Path) -> Any:
    """Return the dataset of each split, and keep their names in the cache."""
    if absent_package("datasets") is not None:
        raise InputError(f"hf: '{name}' is read with the package datasets: {install_advice('hf')}")
    import datasets

    repository, _, revision = name.partition("@")
    try:
        if local.is_dir():
            found: Any = datasets.load_dataset(str(local))
        else:
            found = datasets.load_dataset(repository, revision=revision or None)
    except Exception as error:  # of the network, of the Hub, of the dataset's files; each library has its own
        raise InputError(f"hf: '{name}' cannot be read ({reason(error)}); check the name and the network") from error
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / _SPLITS, "\n".join(found) + "\n")
    return found


def _download(name: str, local: Path, folder: Path, split: str | None, default: str) -> str:
    """Write a split to the cache and return its name."""
    say(f"hf: reading '{name}' ({split or default}) and keeping it in {folder}")
    loaded = _loaded(name, local, folder)
    found = str(choose_split(list(loaded), split, default, f"hf: '{name}'"))
    with held_lock(folder / f".{found}.lock"):
        if not (folder / f"{found}.json").exists():
            content = _Writer(name, folder / found, loaded[found]).write()
            write_json(folder / f"{found}.json", content)
    return found


class _Writer:
    """Writes the images of a split, and returns its labels in COCO's form."""

    def __init__(self, name: str, images: Path, rows: Any) -> None:
        self.name, self.images = name, images
        features: Mapping[str, Any] = rows.features
        image = next((key for key, one in features.items() if type(one).__name__ == "Image"), None)
        objects = next((key for key in _OBJECTS if key in features), None)
        if image is None or objects is None:
            raise InputError(
                f"hf: '{name}' has the columns {', '.join(features)}; expected an image, and objects with boxes"
            )
        inside = _fields(features[objects])
        boxes = next((key for key in _BOXES if key in inside), None)
        classes = next((key for key in _CLASSES if key in inside), None)
        if boxes is None or classes is None:
            raise InputError(f"hf: '{name}': {objects} has {', '.join(inside)}; expected bbox and category")
        self.image, self.objects, self.boxes, self.classes = image, objects, boxes, classes
        self.names: list[str] | None = _class_names(inside[classes])
        import datasets

        self.rows = rows.cast_column(image, datasets.Image(decode=False))

    def write(self) -> dict[str, Any]:
        """Write the images and return the labels."""
        self.images.mkdir(parents=True, exist_ok=True)
        content: dict[str, Any] = {"images": [], "annotations": []}
        found: list[tuple[int, Any, Any]] = []
        sizes: dict[int, tuple[int, int]] = {}
        for image_id, row in enumerate(self.rows, start=1):
            file_name, size = self._image(image_id, row[self.image])
            sizes[image_id] = size
            content["images"].append({"id": image_id, "file_name": file_name, "width": size[0], "height": size[1]})
            found += [(image_id, *one) for one in self._objects(row[self.objects])]
        corners = _are_corners([(sizes[image_id], box) for image_id, box, _ in found])
        names = self.names or sorted({str(one) for _, _, one in found})
        for number, (image_id, box, kind) in enumerate(found, start=1):
            category = kind if self.names else names.index(str(kind))
            shape = _from_corners(box) if corners else box
            entry = {"id": number, "image_id": image_id, "category_id": category, "bbox": shape, "iscrowd": 0}
            content["annotations"].append(entry)
        content["categories"] = [{"id": number, "name": one} for number, one in enumerate(names)]
        return content

    def _image(self, number: int, value: Mapping[str, Any]) -> tuple[str, tuple[int, int]]:
        data = value.get("bytes") or Path(str(value.get("path"))).read_bytes()
        try:
            with Image.open(io.BytesIO(data)) as image:
                suffix, size = (image.format or "png").lower(), image.size
        except OSError as error:
            raise InputError(f"hf: '{self.name}': image {number} cannot be read ({reason(error)})") from error
        file_name = f"{number:08d}.{'jpg' if suffix == 'jpeg' else suffix}"
        (self.images / file_name).write_bytes(data)
        return file_name, size

    def _objects(self, value: Any) -> Iterable[tuple[Any, Any]]:
        """Yield boxes and classes of a row: a dictionary of lists, or a list of dictionaries."""
        if isinstance(value, Mapping):
            yield from zip(value[self.boxes], value[self.classes], strict=False)
        else:
            yield from ((one[self.boxes], one[self.classes]) for one in value or ())


def _fields(feature: Any) -> Mapping[str, Any]:
    """Return the features inside a column of objects, whatever wraps them."""
    for _ in range(3):
        inner = getattr(feature, "feature", None)
        feature = inner if inner is not None else feature[0] if isinstance(feature, list) and feature else feature
    return feature if isinstance(feature, Mapping) else {}


def _class_names(feature: Any) -> list[str] | None:
    """Return the names of a column of classes, or None if it has texts or numbers without names."""
    inner = getattr(feature, "feature", None) or (feature[0] if isinstance(feature, list) and feature else feature)
    names = getattr(inner, "names", None)
    return [str(one) for one in names] if names else None


def _are_corners(boxes: Sequence[tuple[tuple[int, int], Any]]) -> bool:
    """True if boxes are x0, y0, x1, y1: more of them lie in their images as such than as x, y, width, height."""
    as_corners = as_sides = 0
    for (width, height), box in boxes:
        numbers = [number_of(one) for one in box] if isinstance(box, Sequence) else []
        values = [one for one in numbers if one is not None]
        if len(values) == 4:
            a, b, c, d = values
            as_corners += c > a and d > b and c <= width + 1 and d <= height + 1
            as_sides += a + c <= width + 1 and b + d <= height + 1
    return as_corners > as_sides


def _from_corners(box: Any) -> Any:
    numbers = [number_of(one) for one in box] if isinstance(box, Sequence) else []
    x0, y0, x1, y1 = numbers if len(numbers) == 4 else [None] * 4
    return box if x0 is None or y0 is None or x1 is None or y1 is None else [x0, y0, x1 - x0, y1 - y0]
