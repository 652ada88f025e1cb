"""Read the sources of a recipe, whatever their format, as the lists of COCO JSON."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vovnet.detection.config.categories import Category
from vovnet.detection.config.sources import DataSource
from vovnet.detection.data import fields
from vovnet.detection.data.annotations import AnnotationFile, read_annotations
from vovnet.detection.formats.finding import contents_of
from vovnet.detection.formats.folders import choose_split
from vovnet.detection.formats.hub_datasets import hub_source
from vovnet.detection.formats.labels import Labels
from vovnet.detection.formats.table import FORMATS
from vovnet.errors import InputError, shown
from vovnet.folders.home import expand_home
from vovnet.images.folder import ImageFolder
from vovnet.terminal.streams import say_once


@dataclass
class SourceFile:
    """The labels of one file or dataset in the lists of COCO JSON, and the folder of their images."""

    name: str
    """What messages call it: the path of the labels."""
    content: AnnotationFile
    folder: ImageFolder
    own_ids: bool
    """True if the ids of categories are the file's own; False if only their names are."""


def read_source(source: DataSource, default: str | None = None) -> list[SourceFile]:
    """Read the labels of a source. A folder of COCO files may have several.

    Args:
        source: The source.
        default: The split to take if the source names none and its data has it; otherwise everything is taken.

    Raises:
        InputError: The labels as a whole cannot be used.
    """
    files = [_read_one(one, default) for one in _resolved(source, default)]
    for one in files if source.part is not None else ():
        _keep_part(one.content, source.part or [0.0, 1.0], one.name)
    return files


def splits_of(path: str | Path, split: str | None = None) -> tuple[str, dict[str, list[DataSource]]]:
    """Return the format of data for people, and the sources of each of its splits, or of one.

    Args:
        path: As for :func:`~vovnet.detection.formats.finding.contents_of`: a folder, a file, or ``hf:ORG/NAME``.
        split: The name of a split, by the data's or by our name.

    Raises:
        InputError: There are no labels of a known format, or there is no such split.
    """
    found = contents_of(path)
    if split is None:
        return found.title, found.splits
    if found.format in ("coco", "yolo", "hf"):
        chosen = choose_split([name for name in found.splits if name], split, None, f"'{path}'") or ""
        return found.title, {chosen: found.splits[chosen]}
    return found.title, {split: [DataSource(folder=str(found.path), split=split)]}


def named_data(
    data: str | Path | None, images: str | Path | None, annotations: str | Path | None, split: str | None = None
) -> tuple[str, dict[str, list[DataSource]]]:
    """Return what :func:`splits_of` does for the arguments of a command: a path, or a COCO file and its images.

    Raises:
        InputError: Both are given or neither; or as for :func:`splits_of`.
    """
    if data is not None and images is None and annotations is None:
        return splits_of(data, split)
    if data is not None or images is None or annotations is None:
        raise InputError("expected a folder or file of labels, or --images FOLDER --annotations FILE.json")
    if split is not None:
        raise InputError("--split: a COCO file is one split; leave it out")
    return "COCO JSON", {"": [DataSource(images=str(images), annotations=str(annotations))]}


def _resolved(source: DataSource, default: str | None) -> list[DataSource]:
    """Return the sources that a folder stands for; of another source itself. What was found is said once."""
    if source.hf:
        return [hub_source(source.hf, source.split, default)]
    if not source.folder:
        return [source]
    found = contents_of(source.folder)
    say_once(f"format of {source.folder}", f"'{source.folder}': {found.title}")
    splits = [name for name in found.splits if name]
    if found.format not in ("coco", "yolo"):
        return [replace(source, folder=str(found.path), split=source.split)]
    if not splits:
        chosen = choose_split([], source.split, None, f"'{source.folder}'") or ""
        return found.splits[chosen]
    name = choose_split(splits, source.split, default, f"'{source.folder}'")
    sources = found.splits[name] if name else [one for some in found.splits.values() for one in some]
    return sources if not source.images else [replace(one, images=source.images) for one in sources]


def _read_one(source: DataSource, default: str | None) -> SourceFile:
    if source.coco_file:
        content = read_annotations(source.coco_file)
        return SourceFile(str(source.coco_file), content, ImageFolder(source.images), True)
    root = expand_home(source.images) if source.images else None
    labels = FORMATS[_format_of(source)].read(_existing(source.labels), source.split, default, root)
    return SourceFile(labels.name, _content(labels), ImageFolder(labels.root), False)


def _format_of(source: DataSource) -> str:
    if source.folder:
        return contents_of(source.folder).format
    return "yolo" if source.yolo else "voc"


def _existing(path: str) -> Path:
    place = expand_home(path)
    if not place.exists():
        raise InputError(f"'{path}': no such file or folder")
    return place


def _content(labels: Labels) -> AnnotationFile:
    if not labels.categories:
        raise InputError(f"{labels.name}: no object has a class")
    return AnnotationFile(
        labels.images,
        labels.annotations,
        labels.categories,
        problems=labels.problems,
        places=labels.places,
        notes=labels.notes,
    )


def _keep_part(content: AnnotationFile, part: Sequence[float], name: str) -> None:
    """Keep the images from one to another part of all, in the order of their names' hashes, and their annotations."""
    keys = [str(one.get("file_name") or one.get("coco_url")) if isinstance(one, dict) else "" for one in content.images]
    hashes = [hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest() for key in keys]
    order = sorted(range(len(hashes)), key=lambda position: (hashes[position], position))
    low, high = (int(bound * len(order) + 1e-9) for bound in part)
    kept = set(order[low:high])
    if not kept:
        raise InputError(f"{name}: part {shown(list(part))} of {len(order)} images is none; give more images")
    lost = {_id(one) for position, one in enumerate(content.images) if position not in kept}
    content.images = [one for position, one in enumerate(content.images) if position in kept]
    lost -= {_id(one) for one in content.images}
    content.annotations = [
        one for one in content.annotations if not isinstance(one, dict) or _image_id(one) not in lost
    ]


def _id(entry: Any) -> int | None:
    return fields.whole_number(entry.get("id")) if isinstance(entry, dict) else None


def _image_id(entry: Mapping[str, Any]) -> int | None:
    # None is the id of entries without a usable one, too: their annotations are kept, and reported.
    found = fields.whole_number(entry.get("image_id"))
    return -(2**63) - 1 if found is None else found


def take_ids(file: SourceFile, wanted: Iterable[Mapping[str, Any]]) -> None:
    """Give categories whose ids are not their file's own the ids that others of these names have.

    Args:
        file: A source; one whose ids are its own is left as it is.
        wanted: Categories of earlier sources or of a detector.
    """
    if file.own_ids:
        return
    known = {str(one["name"]): int(one["id"]) for one in wanted}
    taken = set(known.values())
    free = max(taken, default=0) + 1
    new: dict[int, int] = {}
    used: set[str] = set()
    for one in file.content.categories:
        number = known.get(one["name"]) if one["name"] not in used else None
        used.add(one["name"])
        if number is None:
            number = one["id"]
            if number in taken:
                number, free = free, free + 1
        taken.add(number)
        free = max(free, number + 1)
        new[one["id"]] = number
    if all(old == number for old, number in new.items()):
        return
    categories: list[Category] = [{**one, "id": new[one["id"]]} for one in file.content.categories]
    file.content.categories = categories
    for entry in file.content.annotations:
        # The number of no class must not become that of one.
        entry["category_id"] = new.get(entry["category_id"], f"class {entry['category_id']}")
