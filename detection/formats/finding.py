"""Find out what a folder or a file of labels holds, and which of it is for training and which for validation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree.ElementTree import Element

from vovnet.detection.config.sources import DataSource
from vovnet.detection.formats.coco_layout import coco_sources, looks_like_coco
from vovnet.detection.formats.folders import Tree, split_of
from vovnet.detection.formats.hub_datasets import hub_splits
from vovnet.detection.formats.label_studio import is_label_studio
from vovnet.detection.formats.labelme import is_labelme
from vovnet.detection.formats.table import FORMATS
from vovnet.detection.formats.text import number_of, read_json, read_text, read_xml
from vovnet.detection.formats.via import via_images
from vovnet.detection.formats.voc import voc_splits
from vovnet.detection.formats.yolo import label_files
from vovnet.detection.formats.yolo_config import find_config, read_config
from vovnet.errors import InputError, shown
from vovnet.folders.home import expand_home
from vovnet.images.reading import example_names

HELD_OUT = 0.2
"""The part of the images that is kept for validation where the data has no split of its own."""

HUB = "hf:"
"""What a dataset of the Hugging Face Hub begins with where paths are expected: ``hf:ORG/NAME``."""

_MOST_TRIED = 50
_KNOWN = "COCO JSON, YOLO (data.yaml), PASCAL VOC, labelme, VIA, CVAT for images, Label Studio"
_TITLES = {"coco": "COCO JSON", "hf": "dataset of the Hugging Face Hub"}


@dataclass(frozen=True)
class FoundSources:
    """The sources of a folder or file: entries for a recipe's ``data.train`` and ``data.val``."""

    train: list[DataSource]
    val: list[DataSource]
    """Empty only if nobody wanted validation data."""
    format: str
    """A key of :data:`~vovnet.detection.formats.table.FORMATS`, or ``coco`` or ``hf``."""
    line: str
    """One line that says what was found, for people."""


@dataclass(frozen=True)
class FolderContents:
    """What a folder or file holds."""

    format: str
    """A key of :data:`~vovnet.detection.formats.table.FORMATS`, or ``coco`` or ``hf``."""
    path: Path
    """What the reader of the format takes."""
    splits: dict[str, list[DataSource]]
    """``train``, ``val`` and ``test`` to their sources; ``""`` is data without splits."""

    @property
    def title(self) -> str:
        """What the format is called in texts."""
        return _TITLES.get(self.format) or FORMATS[self.format].title


def sources_of(path: str | Path, *, hold_out: bool = True) -> FoundSources:
    """Find out what labels a folder or file has.

    Validation data is the split ``val``, or else ``test``. Where there is neither, a fifth of the images is held out:
    the same images each time, chosen by their names.

    Args:
        path: A folder, ``data.yaml``, a file of COCO, VIA, CVAT or Label Studio, or ``hf:ORG/NAME``.
        hold_out: If False, data without splits is for training as a whole.

    Raises:
        InputError: There is no such path, or no labels of a known format.
    """
    found = contents_of(path)
    splits = found.splits
    train = splits.get("train") or splits.get("") or []
    if not train:
        raise InputError(f"'{path}': {found.title} has {', '.join(map(shown, splits))} but no split 'train'")
    second = "val" if "val" in splits else "test" if "test" in splits else None
    val = splits[second] if second else []
    said = f"'{path}': {found.title}"
    if second:
        line = f"{said}; training on split 'train', validation on '{second}'"
    elif not hold_out:
        line = f"{said}, without splits"
    else:
        val = [replace(one, part=[1 - HELD_OUT, 1.0]) for one in train]
        train = [replace(one, part=[0.0, 1 - HELD_OUT]) for one in train]
        line = f"{said}; no validation data: {HELD_OUT:.0%} of the images are held out for it"
    return FoundSources(train, val, found.format, line)


def contents_of(path: str | Path) -> FolderContents:
    """Find out the format and the splits of a folder or file, or of a dataset of the Hub (``hf:ORG/NAME``).

    Raises:
        InputError: There is no such path or dataset, or no labels of a known format.
    """
    if (name := str(path)).startswith(HUB):
        return _on_hub(name.removeprefix(HUB))
    place = expand_home(path)
    if not place.exists():
        raise InputError(f"'{path}': no such file or folder")
    return _in_folder(place) if place.is_dir() else _of_file(place)


def _on_hub(name: str) -> FolderContents:
    splits = {split_of(split) or split: [DataSource(hf=name, split=split)] for split in hub_splits(name)}
    return FolderContents("hf", Path(name), splits)


def _of_file(path: Path) -> FolderContents:
    """Return what a single file holds."""
    suffixes = path.suffixes[-2:]
    suffix = path.suffix.lower()
    if suffix in (".yaml", ".yml", ".data"):
        return _yolo(path)
    if suffix == ".csv":
        return _whole("via", path)
    if suffix == ".xml":
        if _root_tag(path) == "annotations":
            return _whole("cvat", path)
        raise InputError(f"'{path}': a file of VOC is of one image; name the folder")
    if suffix == ".json" or suffixes == [".json", ".gz"]:
        if suffix == ".gz" or looks_like_coco(path):
            return _coco(Tree(path.parent), [path.name])
        for name, is_format in _JSON.items():
            if is_format(read_json(path)):
                return _whole(name, path)
    raise InputError(f"'{path}': expected a folder or a file of {_KNOWN}")


_JSON: dict[str, Callable[[object], object]] = {
    "labelme": is_labelme,
    "via": via_images,
    "label_studio": is_label_studio,
}


def _in_folder(folder: Path) -> FolderContents:
    """Return what a folder holds. A folder that holds only one other, as of an unpacked archive, is that one."""
    tree = Tree(folder)
    while not tree.files[""] and len(inside := {name.split("/")[0] for name in tree.files if name}) == 1:
        folder = folder / inside.pop()
        tree = Tree(folder)
    for find in (_find_yolo, _find_coco, _find_xml, _find_json, _find_bare_yolo):
        if (found := find(tree)) is not None:
            return found
    files = [name for some in tree.files.values() for name in some]
    held = f"it holds {example_names(files, len(files))}" if files else "it is empty"
    raise InputError(f"'{folder}': no labels of a known format in this folder ({_KNOWN}); {held}")


def _find_yolo(tree: Tree) -> FolderContents | None:
    config = find_config(tree.root)
    if config is None or (config.suffix == ".txt" and not tree.named(suffix=".txt")[1:]):
        return None
    return _yolo(config)


def _yolo(config: Path) -> FolderContents:
    splits = {
        split: [DataSource(yolo=str(config), split=split or None)] for split in read_config(config).splits or {"": []}
    }
    return FolderContents("yolo", config, splits)


def _find_coco(tree: Tree) -> FolderContents | None:
    names = [*tree.named(suffix=".json"), *tree.named(suffix=".json.gz")]
    files = [name for name in _spread(names) if name.endswith(".gz") or looks_like_coco(tree.root / name)]
    return _coco(tree, files) if files else None


def _spread(names: list[str]) -> list[str]:
    """Return some names of each folder: one file of COCO has many images, and a folder of them few files."""
    counts: dict[str, int] = {}
    found = []
    for name in names:
        folder = name.rpartition("/")[0]
        counts[folder] = counts.get(folder, 0) + 1
        if counts[folder] <= _MOST_TRIED:
            found.append(name)
    return found


def _coco(tree: Tree, files: list[str]) -> FolderContents:
    return FolderContents("coco", tree.root, coco_sources(tree, files))


def _find_xml(tree: Tree) -> FolderContents | None:
    for name in tree.named(suffix=".xml")[:_MOST_TRIED]:
        tag = _root_tag(tree.root / name)
        if tag == "annotations":
            return _whole("cvat", tree.root / name)
        if tag == "annotation":
            return FolderContents("voc", tree.root, _voc_splits(tree))
    return None


def _root_tag(path: Path) -> str:
    try:
        root: Element = read_xml(path)
    except InputError:
        return ""
    return root.tag


def _voc_splits(tree: Tree) -> dict[str, list[DataSource]]:
    names = {ours: name for name in voc_splits(tree) if (ours := split_of(name))}
    if "train" not in names:
        return {"": [DataSource(voc=str(tree.root))]}
    return {ours: [DataSource(voc=str(tree.root), split=name)] for ours, name in names.items()}


def _find_json(tree: Tree) -> FolderContents | None:
    names = _spread(tree.named(suffix=".json"))[:_MOST_TRIED]
    for name in names:
        try:
            content = read_json(tree.root / name)
        except InputError:
            continue
        for format_name, is_format in _JSON.items():
            if not is_format(content):
                continue
            if format_name != "labelme":
                return _whole(format_name, tree.root / name)
            folders = {ours: part for folder in tree.files for part in folder.split("/") if (ours := split_of(part))}
            if "train" not in folders:
                return _whole("labelme", tree.root)
            return FolderContents(
                "labelme",
                tree.root,
                {ours: [DataSource(folder=str(tree.root), split=part)] for ours, part in folders.items()},
            )
    csvs = tree.named(suffix=".csv")
    return next((_whole("via", tree.root / name) for name in csvs if _is_via_csv(tree.root / name)), None)


def _is_via_csv(path: Path) -> bool:
    try:
        return "region_shape_attributes" in read_text(path)[:1000]
    except InputError:
        return False


def _find_bare_yolo(tree: Tree) -> FolderContents | None:
    """Refuse YOLO's labels without the names of the classes, as the numbers alone name nothing."""
    for name in tree.images()[:_MOST_TRIED]:
        for file in label_files(name):
            if tree.has(file) and _is_yolo_text(tree.root / file):
                raise InputError(
                    f"'{tree.root}': has YOLO's labels ({shown(file)}) without the names of the classes; write them "
                    "into classes.txt in this folder, a name a line"
                )
    return None


def _is_yolo_text(path: Path) -> bool:
    try:
        lines = [line.split() for line in read_text(path).splitlines() if line.strip()]
    except InputError:
        return False
    return bool(lines) and all(len(parts) >= 5 and all(number_of(one) is not None for one in parts) for parts in lines)


def _whole(name: str, path: Path) -> FolderContents:
    return FolderContents(name, path, {"": [DataSource(folder=str(path))]})
