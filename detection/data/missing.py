"""Say where a missing image was looked for, and which file may have been meant."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from vovnet.errors import did_you_mean, is_text, shown

_MOST_FOLDERS, _MOST_NAMES = 200, 5000
"""Limits of a search: subfolders that are looked into, and names in a folder that are compared letter by letter."""


def looked_for(root: str | Path, file_name: str) -> str:
    """Return the path that a ``file_name`` stands for, and the name of a file near it if there is one.

    A near file has the name in another case or with another suffix, lies in a folder above or below, or has a similar
    name. Only ``root`` and what is in it is searched.
    """
    path = shown(os.path.join(root, file_name))
    parts = [part for part in re.split(r"[/\\]", file_name) if part not in ("", ".", "..")]
    if not parts or not is_text(file_name) or "\0" in file_name:
        return path
    for candidate in _candidates(root, parts):
        if (near := _follow(root, candidate)) is not None:
            return f"{path} (did you mean {shown(near)!r}?)"
    similar = _similar(root, parts)
    return f"{path} ({similar})" if similar else path


def _candidates(root: str | Path, parts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield the parts of a name, then without leading folders, then below each subfolder of the root."""
    for start in range(len(parts)):
        yield parts[start:]
    for folder in [name for name, is_folder in _names(root).items() if is_folder][:_MOST_FOLDERS]:
        for start in {0, len(parts) - 1}:
            if os.path.isfile(os.path.join(root, folder, *parts[start:])):
                yield [folder, *parts[start:]]


def _follow(root: str | Path, parts: Sequence[str]) -> str | None:
    """Return the file that parts lead to if the case of each and the suffix of the last may differ."""
    found: list[str] = []
    for depth, part in enumerate(parts):
        last = depth == len(parts) - 1
        names = [name for name, is_folder in _names(os.path.join(root, *found)).items() if is_folder != last]
        same = [name for name in names if name == part] or [n for n in names if n.casefold() == part.casefold()]
        if not same and last:
            stem = PurePath(part).stem.casefold()
            same = [name for name in names if PurePath(name).stem.casefold() == stem]
        if not same:
            return None
        found.append(min(same))
    return "/".join(found)


def _similar(root: str | Path, parts: Sequence[str]) -> str:
    """Return "did you mean …?" with the most similar name in the folder that has the same numbers, or nothing.

    ``000124.jpg`` is most similar to ``000123.jpg``, but is another image.
    """
    names = [name for name, is_folder in _names(os.path.join(root, *parts[:-1])).items() if not is_folder]
    if len(names) > _MOST_NAMES:
        return ""
    same = [name for name in names if _numbers(name) == _numbers(parts[-1])]
    return did_you_mean("/".join(parts), ("/".join((*parts[:-1], name)) for name in same), cutoff=0.65)


def _numbers(name: str) -> list[str]:
    return [digits.lstrip("0") for digits in re.findall(r"\d+", PurePath(name).stem)]


def _names(folder: str | Path) -> dict[str, bool]:
    """Return the names in a folder, sorted, and for each whether it is a folder."""
    try:
        with os.scandir(folder) as entries:
            return dict(sorted((entry.name, entry.is_dir()) for entry in entries))
    except OSError:
        return {}
