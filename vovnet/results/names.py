"""Names for the files of predictions: distinct, and such that the file system of the output holds them."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import unicodedata
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

_PLAIN = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,79}")
_WINDOWS = re.compile(r'.*[<>:"|?*\\]|.*[. ]$|(con|prn|aux|nul|com\d|lpt\d)(\..*)?$', re.IGNORECASE | re.DOTALL)
"""Matches names that Windows keeps for itself or refuses."""


def output_names(paths: Sequence[Path], folder: Path) -> list[str]:
    """Return a name for the results of each image file: its stem, or one like it where that is not possible.

    Args:
        paths: image files.
        folder: where the results go; it exists.

    Returns:
        Distinct names without a suffix. Equal stems get a number: ``a``, ``a-2``, ``a-3``. Where the file system does
        not tell ``A`` from ``a``, these are equal. A stem that it refuses, because it is too long or has characters
        that it lacks, becomes letters, digits and a hash of the stem.
    """
    key = _folded if _ignores_case(folder) else str

    def held(stems: Sequence[str]) -> list[str]:
        return distinct([stem if _is_held(folder, stem) else _replacement(stem) for stem in stems], key)

    return held(held([path.stem for path in paths]))  # again, because a number makes a name longer


def distinct(stems: Sequence[str], key: Callable[[str], str]) -> list[str]:
    """Return the names with numbers after those that are equal by a key."""
    given = {key(stem) for stem in stems}
    used: set[str] = set()
    last: dict[str, int] = {}
    names = []
    for stem in stems:
        name, number = stem, last.get(key(stem), 1)
        while key(name) in used or (number > 1 and key(name) in given):
            number += 1
            name = f"{stem}-{number}"
        used.add(key(name))
        last[key(stem)] = number
        names.append(name)
    return names


def _folded(name: str) -> str:
    # File systems that ignore case (of macOS, of Windows) take the composed and the decomposed form of é for the same.
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _replacement(stem: str) -> str:
    digest = hashlib.sha256(stem.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    return f"{re.sub('[^A-Za-z0-9_-]+', '_', stem)[:80]}-{digest}"


def _is_held(folder: Path, stem: str, windows: bool = os.name == "nt") -> bool:
    """Return True if the file system takes the stem as part of a name."""
    if windows and _WINDOWS.match(stem):
        return False
    if _PLAIN.fullmatch(stem):
        return True
    odd = "".join(sorted({one for one in stem if not _PLAIN.fullmatch(one)}))
    try:
        with suppress(FileNotFoundError):
            os.lstat(folder / f"{stem}.json")  # fails if the name is too long
        with tempfile.NamedTemporaryFile(prefix=f".tmp-{odd[:40]}", dir=folder):
            return True
    except (OSError, ValueError):
        return False


def _ignores_case(folder: Path) -> bool:
    with suppress(OSError), tempfile.NamedTemporaryFile(prefix=".tmp-a", dir=folder) as file:
        return (folder / Path(file.name).name.upper()).exists()
    return False
