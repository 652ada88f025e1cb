"""Which COCO files a folder has, for which split each is, and where its images lie.

Microsoft's layout (``annotations/instances_train2017.json``, ``train2017/``), Roboflow's
(``train/_annotations.coco.json`` beside the images), CVAT's and Label Studio's are known.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from vovnet.detection.config.sources import DataSource
from vovnet.detection.formats.folders import Tree, best_root, split_of
from vovnet.detection.formats.text import read_json
from vovnet.errors import InputError

_HEAD = 2**18
_OTHER_TASKS = re.compile(r"(captions|person_keypoints|stuff|panoptic|image_info)_")
_NAMES = re.compile(r'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")')
_MOST_NAMES = 20


def looks_like_coco(path: Path) -> bool:
    """Return True if a JSON file has the lists of COCO. Of a large file only the beginning is read."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD + 1)
        if len(head) > _HEAD:
            text = head.decode(json.detect_encoding(head[:4]), "replace")
            return re.search(r'^\s*\{.*?"(images|annotations|categories)"\s*:\s*\[', text, re.DOTALL) is not None
        content = read_json(path)
    except (OSError, InputError):
        return False
    return isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys()


def coco_sources(tree: Tree, files: list[str]) -> dict[str, list[DataSource]]:
    """Return the sources of each split, of COCO files of a tree. Files of no known split are ``""``."""
    boxes = [file for file in files if not _OTHER_TASKS.search(file.split("/")[-1])]
    sources: dict[str, list[DataSource]] = {}
    for file in boxes or files:
        split = file_split(file)
        images = _images_of(tree, file, split)
        sources.setdefault(split, []).append(DataSource(images=str(images), annotations=str(tree.root / file)))
    return sources


def file_split(file: str) -> str:
    """Return the split that a file's name or folder tells, or nothing: ``instances_val2017.json`` is ``val``."""
    *folders, last = file.split("/")
    words = [*re.findall(r"[a-z]+", last.lower())[::-1], *(re.sub(r"\d+$", "", one) for one in folders[::-1])]
    return next((split for word in words if (split := split_of(word))), "")


def _images_of(tree: Tree, file: str, split: str) -> Path:
    """Return the folder that the names of a COCO file are relative to: the first likely one that has some of them."""
    folder = file.rpartition("/")[0]
    above = folder.rpartition("/")[0]
    stem = re.sub(r"^(instances|_annotations)_?|\.coco$", "", file.split("/")[-1].rpartition(".")[0])
    bases = dict.fromkeys((folder, above, ""))
    inside = dict.fromkeys(("", "images", stem, f"images/{stem}", split, f"images/{split}", "JPEGImages", "data"))
    candidates = [f"{base}/{name}".strip("/") for base in bases for name in inside]
    names = _some_names(tree.root / file)
    found = best_root(tree, names, candidates)
    if found is None:  # names with a folder before them, which only the end of a path shows
        suffixes = {name for name in names if "/" in name}
        found = next((one for one in tree.files if any(tree.has(f"{one}/{name}".strip("/")) for name in names)), None)
        found = folder if found is None and not suffixes else found
    return tree.root / (folder if found is None else found)


def _some_names(path: Path) -> list[str]:
    """Return some of the ``file_name`` entries of a COCO file, from its beginning if they stand there."""
    with path.open("rb") as file:
        head = file.read(_HEAD)
    names = _NAMES.findall(head.decode(json.detect_encoding(head[:4]), "replace"))
    if names:
        return [json.loads(name, strict=False) for name in names[:_MOST_NAMES]]
    content = read_json(path)
    entries = content.get("images") if isinstance(content, dict) else None
    found = [one.get("file_name") for one in (entries or [])[:_MOST_NAMES] if isinstance(one, dict)]
    return [name for name in found if isinstance(name, str)]
