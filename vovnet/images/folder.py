"""Find images below a folder that no file name can leave.

Names come from annotation files and may be hostile: a name that is absolute or contains ``..`` is refused. Links are
the user's own: a link in the folder is followed, wherever it leads, because images are only read. (DVC, git-annex,
splits made with ``ln -s`` and ``snapshot_download`` store images as links.)
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections.abc import Callable
from pathlib import Path, PurePath, PureWindowsPath

from vovnet.errors import InputError, is_text
from vovnet.folders.home import expand_home
from vovnet.images.reading import example_names, image_suffixes


class OutsideRoot(InputError):
    """A ``file_name`` leads out of the folder of images."""


def list_images(folder: str | Path, report: Callable[[str], object] | None = None) -> list[Path]:
    """Return the images in a folder, by suffix and sorted by name, without subfolders and hidden files.

    Args:
        folder: The folder.
        report: Called with one line that says which files and folders were skipped, if any were. Hidden ones are not
            mentioned.
    """
    folder = expand_home(folder)
    suffixes = image_suffixes()
    images: list[str] = []
    others: list[str] = []
    folders: list[str] = []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda one: one.name):
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry):
                    folders.append(entry.name)
                else:
                    known = PurePath(entry.name).suffix.lower() in suffixes
                    (images if known else others).append(entry.name)
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed as a folder of images ({error.strerror})") from error
    skipped = [
        f"{len(names)} {kind}{'s' if len(names) > 1 else ''} ({example_names(names, len(names))})"
        for kind, names in (("other file", others), ("folder", folders))
        if names
    ]
    if not images:
        found = f"only {' and '.join(skipped)}" if skipped else "it is empty"
        raise InputError(f"{folder}: no images in this folder: {found}; expected .jpg, .png or the like")
    if skipped and report is not None:
        report(f"{folder}: skipped {' and '.join(skipped)}")
    return [Path(folder, name) for name in images]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself; reading it says so
        return False


def resolve_inside(root: str | Path, file_name: str) -> Path:
    """Return the path of ``file_name`` below ``root``. The file need not exist.

    Raises:
        OutsideRoot: ``file_name`` is absolute or contains ``..``, by the rules of POSIX or of Windows.
    """
    return Path(os.path.realpath(root), _inside(file_name))


def _inside(file_name: str) -> str:
    if not is_text(file_name) or "\0" in file_name:
        raise OutsideRoot(f"{file_name!r}: file_name must be text without a null character")
    # A drive without a root, as in "a:b.png", is an ordinary name on POSIX systems. PurePath knows where it is none.
    rooted = file_name.startswith(("/", "\\")) or PureWindowsPath(file_name).is_absolute()
    if rooted or PurePath(file_name).drive:
        raise OutsideRoot(f"{file_name!r}: file_name must be relative to the folder of images")
    # The name "a/../b" stays inside, but "a" may be a link that leads out. Therefore ".." is never accepted.
    if ".." in re.split(r"[/\\]", file_name):
        raise OutsideRoot(f"{file_name!r}: file_name must not contain '..'")
    return os.path.normpath(file_name)


class ImageFolder:
    """Find many files below a folder quickly: each subfolder is listed once.

    A name is looked up as it is given. If there is no such file, backslashes are taken for slashes (annotations that
    were exported on Windows), and names are compared in Unicode's composed form (macOS writes ``é`` as two characters).
    """

    def __init__(self, root: str | Path) -> None:
        root = expand_home(root)
        if not os.path.isdir(root):
            what = "is not a folder" if os.path.exists(root) else "no such folder"
            raise InputError(f"{root}: {what} (expected the folder that the annotations' file_name entries are in)")
        self.root = root
        self._base = os.path.realpath(root)
        self._listed: dict[str, dict[str, bool]] = {}
        self._composed: dict[str, dict[str, str]] = {}

    def find(self, file_name: str) -> str | None:
        """Return the path of a file, or None if it is missing, or is a link to something that is no file.

        Raises:
            OutsideRoot: see :func:`resolve_inside`.
        """
        inside = _inside(file_name)
        return self._file(inside) or self._file(self._existing(inside)) or self._file(self._existing(_slashes(inside)))

    def _file(self, inside: str) -> str | None:
        folder, name = os.path.split(inside)
        plain = self._names(folder).get(name)
        if plain is None:
            return None
        path = os.path.join(self._base, inside)
        return path if plain or _is_file(path) else None

    def _existing(self, inside: str) -> str:
        """Return a name with each of its parts as the file system spells it, as far as they exist."""
        found = ""
        for part in inside.split(os.sep):
            if part not in self._names(found):
                if found not in self._composed:
                    names = sorted(self._names(found), reverse=True)
                    self._composed[found] = {unicodedata.normalize("NFC", name): name for name in names}
                part = self._composed[found].get(unicodedata.normalize("NFC", part), part)
            found = os.path.join(found, part)
        return found

    def _names(self, folder: str) -> dict[str, bool]:
        """Return the names in a folder, and for each whether it is a plain file and not a link."""
        if folder not in self._listed:
            try:
                with os.scandir(os.path.join(self._base, folder)) as entries:
                    self._listed[folder] = {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
            except OSError:  # A folder that is missing or forbidden has no files.
                self._listed[folder] = {}
        return self._listed[folder]


def _slashes(name: str) -> str:
    return os.path.normpath(name.replace("\\", "/"))


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False
