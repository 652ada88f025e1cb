"""The files below a dataset's folder: images by name and by stem, and the names of its splits."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from vovnet.errors import InputError, shown
from vovnet.images.reading import image_suffixes

SPLITS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""The names of splits here, and what other programs call them."""

MOST_FOLDERS = 20_000
"""No more subfolders are looked into: a folder that holds so many is not a dataset's."""


class Tree:
    """The names below a folder, listed once; hidden ones and links that lead back to a folder above are left out."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.files: dict[str, list[str]] = {}
        """Each subfolder, relative to the root and with slashes ("" is the root), and its sorted files."""
        seen: set[str] = set()
        waiting = [""]
        while waiting:
            folder = waiting.pop()
            real = os.path.realpath(os.path.join(root, folder))
            if real in seen or len(seen) >= MOST_FOLDERS:
                continue
            seen.add(real)
            self.files[folder], subfolders = _listed(os.path.join(root, folder))
            waiting += [f"{folder}/{name}" if folder else name for name in reversed(subfolders)]
        self._stems: dict[str, dict[str, str]] = {}

    def images(self, folder: str = "") -> list[str]:
        """Return the images in a folder and below it, relative to the root."""
        suffixes = image_suffixes()
        return [
            name
            for name in self.named(folder)
            if os.path.splitext(name)[1].lower() in suffixes  # .tif and .npy too, where they are read
        ]

    def named(self, folder: str = "", suffix: str = "") -> list[str]:
        """Return the files in a folder and below it whose names end in a suffix, relative to the root and sorted."""
        inside = [one for one in self.files if not folder or one == folder or one.startswith(f"{folder}/")]
        return sorted(
            f"{one}/{name}" if one else name
            for one in inside
            for name in self.files[one]
            if name.lower().endswith(suffix)
        )

    def has(self, name: str) -> bool:
        """Return True if there is such a file."""
        folder, _, last = name.rpartition("/")
        return last in self.files.get(folder, ())

    def image_beside(self, folder: str, stem: str) -> str | None:
        """Return the image in a folder that has a stem, relative to the root, or None."""
        if folder not in self._stems:
            suffixes = image_suffixes()
            pairs = [os.path.splitext(name) for name in reversed(self.files.get(folder, ()))]
            self._stems[folder] = {one: one + suffix for one, suffix in pairs if suffix.lower() in suffixes}
        name = self._stems[folder].get(stem)
        return None if name is None else (f"{folder}/{name}" if folder else name)


def _listed(folder: str) -> tuple[list[str], list[str]]:
    """Return the sorted names of the files and of the folders in a folder. One that cannot be listed has none."""
    files: list[str] = []
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.startswith(".") and entry.name != "__MACOSX":
                    (folders if _is_folder(entry) else files).append(entry.name)
    except OSError:
        pass
    return sorted(files), sorted(folders)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def split_of(name: str) -> str | None:
    """Return ``train``, ``val`` or ``test`` for the name of a split in any program, or None."""
    return next((split for split, names in SPLITS.items() if name.lower() in names), None)


def choose_split(known: Sequence[str], wanted: str | None, default: str | None, where: str) -> str | None:
    """Return the name of a split as the data has it, or None for data without splits and for all of them.

    Args:
        known: The names of the splits that the data has; empty if it has none.
        wanted: What the user asked for, by the data's or by our name; None for nothing.
        default: The split to take then: ``train``, or ``val``, for which ``test`` will do. None takes all.
        where: The data, for messages.

    Raises:
        InputError: The data has splits, but not that one: nobody shall evaluate on training data unawares.
    """
    if wanted is None and (default is None or not known):
        return None
    names = [wanted] if wanted is not None else ["val", "test"] if default == "val" else [str(default)]
    found = next((one for name in names if (one := named_split(known, name)) is not None), None)
    if found is None:
        has = f"it has {', '.join(map(shown, known))}" if known else "it has no splits; leave split out"
        raise InputError(f"{where}: split: there is no '{shown(names[0])}'; {has}")
    return found


def named_split(known: Sequence[str], name: str) -> str | None:
    """Return the name that the data has for a split, or None."""
    ours = split_of(name)
    return next((one for one in known if one == name), None) or next(
        (one for one in known if ours and split_of(one) == ours), None
    )


def best_root(tree: Tree, names: Iterable[str], roots: Iterable[str]) -> str | None:
    """Return the first of some folders of a tree that has any of the images ``names``, or None."""
    wanted = list(names)
    for root in roots:
        if root in tree.files and any(tree.has(f"{root}/{name}" if root else name) for name in wanted):
            return root
    return None
