"""What a YOLO dataset says of itself: Ultralytics' ``data.yaml``, darknet's ``obj.data``, or only ``classes.txt``."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vovnet.detection.formats.folders import SPLITS, Tree, split_of
from vovnet.detection.formats.text import read_text
from vovnet.errors import InputError, is_text, reason, shown

_MOST_BYTES = 2**22
_NAME_FILES = ("classes.txt", "obj.names", "classes.names", "labels.txt")
_MOST_CLASSES = 20_000


@dataclass
class YoloConfig:
    """A YOLO dataset: its classes, and which folders or lists of images make its splits."""

    name: str
    """The file, for messages."""
    root: Path
    names: dict[int, str]
    """The number of a class in the files of labels to its name."""
    splits: dict[str, list[str]] = field(default_factory=dict)
    """The name of a split to folders, or ``.txt`` files with a name of an image a line, relative to the root."""
    keypoints: tuple[int, int] | None = None
    """The number of an object's keypoints, and the numbers of each: 2 (x, y) or 3 (x, y, visibility)."""
    keypoint_names: list[str] | None = None
    task: str | None = None
    """``detect``, ``segment``, ``pose`` or ``obb``, if the file says so."""


def read_config(path: Path, root: Path | None = None) -> YoloConfig:
    """Read what describes a YOLO dataset.

    Args:
        path: ``data.yaml``, ``obj.data``, or a folder with one of these or with ``classes.txt``.
        root: The folder that the paths in the file are relative to; None is the file's own.

    Raises:
        InputError: There is no such file, or it does not describe a dataset.
    """
    file = _config_in(path) if path.is_dir() else path
    if file.suffix.lower() in (".yaml", ".yml"):
        return _from_yaml(file, root or file.parent)
    if file.suffix.lower() == ".data":
        return _from_darknet(file, root or file.parent)
    return _from_names(file, root or file.parent)


def find_config(folder: Path) -> Path | None:
    """Return the file in a folder that describes a YOLO dataset, or None."""
    names = sorted(path.name for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    preferred = ("data.yaml", "data.yml", "dataset.yaml", "obj.data")
    others = [name for name in names if name.endswith((".yaml", ".yml")) and name not in preferred]
    for name in [one for one in preferred if one in names] + others:
        if name in ("obj.data",) or describes_yolo(folder / name):
            return folder / name
    found = next((name for name in _NAME_FILES if name in names), None)
    return None if found is None else folder / found


def describes_yolo(path: Path) -> bool:
    """True if a YAML file has the keys of a YOLO dataset."""
    try:
        text = read_text(path, _MOST_BYTES)
    except InputError:
        return path.name.startswith("data.")
    return re.search(r"^\s*(names|nc)\s*:", text, re.MULTILINE) is not None


def _config_in(folder: Path) -> Path:
    found = find_config(folder)
    if found is None:
        raise InputError(f"yolo: '{folder}': expected data.yaml, obj.data or {_NAME_FILES[0]} in this folder")
    return found


def _from_yaml(file: Path, root: Path) -> YoloConfig:
    try:
        content = yaml.safe_load(read_text(file, _MOST_BYTES))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: is not valid YAML ({reason(error)})") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected keys such as names, train and val, got {_kind(content)}")
    names = _names_of(content, file)
    base = _inside(content.get("path"), root, file, "path") if content.get("path") else ""
    splits = {}
    for split, spellings in SPLITS.items():
        value = next((content[key] for key in spellings if content.get(key)), None)
        if value is not None:
            entries = value if isinstance(value, list) else [value]
            splits[split] = [_entry(one, base, root, file, split) for one in entries]
    config = YoloConfig(str(file), root, names, splits)
    if content.get("kpt_shape") is not None:
        config.keypoints = _keypoint_shape(content["kpt_shape"], file)
        config.keypoint_names = _keypoint_names(content, config.keypoints[0])
    task = content.get("task")
    config.task = task if isinstance(task, str) else None
    return config


def _kind(value: object) -> str:
    return "nothing: the file is empty" if value is None else shown(value)


def _names_of(content: Mapping[Any, Any], file: Path) -> dict[int, str]:
    names, count = content.get("names"), content.get("nc")
    if names is None and type(count) is int and 0 < count <= _MOST_CLASSES:
        names = [str(number) for number in range(count)]
    found: dict[int, str] = {}
    values = names.values() if isinstance(names, dict) else names if isinstance(names, list) else ()
    if not all(isinstance(one, str | int | float) for one in values):
        raise InputError(f"{file}: names: expected a name for each class, got {shown(names)}")
    if isinstance(names, list):
        found = {number: str(name) for number, name in enumerate(names)}
    elif isinstance(names, dict) and all(type(key) is int and key >= 0 for key in names):
        found = {key: str(name) for key, name in sorted(names.items())}
    if not found or len(found) > _MOST_CLASSES or not all(map(is_text, found.values())):
        raise InputError(f"{file}: names: expected the classes as a list or as {{0: name, …}}, got {shown(names)}")
    if type(count) is int and count != len(found):
        raise InputError(f"{file}: nc is {count}, but names has {len(found)}; correct one of them")
    return found


def _entry(value: Any, base: str, root: Path, file: Path, split: str) -> str:
    """Return a folder or list of images relative to the root, also where a file says it as other programs do.

    Roboflow writes ``../train/images`` for what lies beside the file: ``..`` is left out if that exists.
    """
    if not is_text(value):
        raise InputError(f"{file}: {split}: expected a folder or a .txt file, got {shown(value)}")
    inside = _inside(value, root, file, split)
    for candidate in (os.path.join(base, inside), inside, inside.removeprefix("data/")):
        if (root / candidate).exists():
            return _plain(candidate)
    for other in SPLITS.get(split, ()):
        if inside.split("/")[0] in SPLITS[split] and (root / other / "images").is_dir():
            return f"{other}/images"
    raise InputError(f"{file}: {split}: there is no '{shown(_plain(os.path.join(base, inside)))}' in {root}")


def _inside(value: Any, root: Path, file: Path, key: str) -> str:
    """Return a path of the file relative to the root.

    A path that leaves the root is taken without what leads out of it if that exists there. (Exporters write
    ``../train/images``, and ``path: /content/datasets/cells`` of the machine on which they ran.)
    """
    if not is_text(value):
        raise InputError(f"{file}: {key}: expected a path, got {shown(value)}")
    text = value.replace("\\", "/").strip()
    parts = [part for part in text.split("/") if part not in ("", ".")]
    leaves = text.startswith("/") or re.match(r"[A-Za-z]:/", text) is not None or ".." in parts
    if not leaves:
        return "/".join(parts)
    last = len(parts) - parts[::-1].index("..") if ".." in parts else 0
    tails = ["/".join(parts[start:]) for start in range(last, len(parts))]
    found = next((tail for tail in tails if (root / tail).exists()), None)
    if found is not None:
        return found
    if key == "path":
        return ""
    raise InputError(
        f"{file}: {key}: '{shown(value)}' leaves {root}, and nothing like it is there; put the file beside the images, "
        "or name their folder: {yolo: data.yaml, images: FOLDER}"
    )


def _plain(path: str) -> str:
    normal = os.path.normpath(path).replace(os.sep, "/")
    return "" if normal == "." else normal


def _keypoint_shape(value: Any, file: Path) -> tuple[int, int]:
    if isinstance(value, list) and len(value) == 2 and all(type(one) is int for one in value):
        count, numbers = value
        if 1 <= count <= 1024 and numbers in (2, 3):
            return count, numbers
    raise InputError(f"{file}: kpt_shape: expected [number of keypoints, 2 or 3], got {shown(value)}")


def _keypoint_names(content: Mapping[Any, Any], count: int) -> list[str] | None:
    """Return the names of keypoints, or names that say which take each other's places in mirror images (flip_idx)."""
    stated = content.get("kpt_names")
    first = next(iter(stated.values()), None) if isinstance(stated, dict) else stated
    if isinstance(first, list) and len(first) == count == len(set(map(str, first))):
        return [str(name) for name in first]
    flips = content.get("flip_idx")
    if not (isinstance(flips, list) and sorted(map(str, flips)) == sorted(map(str, range(count)))):
        return None
    names = []
    for number, other in enumerate(map(int, flips)):
        side = "" if other == number else "left " if number < other else "right "
        names.append(f"{side}point {min(number, other) + 1}")
    return names if len(set(names)) == count else None


def _from_darknet(file: Path, root: Path) -> YoloConfig:
    lines = (line.partition("=") for line in read_text(file, _MOST_BYTES).splitlines() if "=" in line)
    content = {key.strip(): value.strip() for key, _, value in lines}
    if not content.get("names"):
        raise InputError(f"{file}: expected lines such as 'names = obj.names' and 'train = train.txt'")
    names = _read_names(root / _entry(content["names"], "", root, file, "names"))
    splits = {
        split: [_entry(content[key], "", root, file, split)]
        for split, spellings in SPLITS.items()
        for key in spellings
        if content.get(key)
    }
    return YoloConfig(str(file), root, names, splits)


def _read_names(file: Path) -> dict[int, str]:
    names = [line.strip() for line in read_text(file, _MOST_BYTES).splitlines() if line.strip()]
    if not names or len(names) > _MOST_CLASSES:
        raise InputError(f"{file}: expected a name of a class a line, got {len(names)}")
    return dict(enumerate(names))


def _from_names(file: Path, root: Path) -> YoloConfig:
    """Return the dataset of a folder with the names of the classes alone, as Label Studio and LabelImg write it."""
    tree = Tree(root)
    inside = [one for one in tree.files if one.split("/")[-1] == "images"] or [""]
    splits: dict[str, list[str]] = {}
    for folder in tree.files:
        parts = folder.split("/")
        found = next((split for part in parts if (split := split_of(part))), None)
        if found and tree.files[folder] and tree.images(folder) and "labels" not in parts:
            splits.setdefault(found, []).append(folder)
    return YoloConfig(str(file), root, _read_names(file), splits or {"": inside})
