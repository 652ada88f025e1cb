"""The user's home and cache folders, also of a user who has none."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import stat
import tempfile
from pathlib import Path

from vovnet.errors import InputError

VARIABLE = re.compile(r"\$[A-Za-z_{]\w*\}?")
"""Matches ``$NAME`` and ``${NAME}``."""


def user_cache() -> Path:
    """Return the user's cache folder: ``XDG_CACHE_HOME``, or ``.cache`` in the home folder.

    A user of a container may have no home: neither ``HOME`` nor an entry in the table of users. The cache is then in
    the folder of temporary files.
    """
    if given := os.environ.get("XDG_CACHE_HOME"):
        return Path(given)
    try:
        return Path.home() / ".cache"
    except RuntimeError:
        return _cache_without_home()


@functools.cache
def _cache_without_home() -> Path:
    """Return a folder of this user alone: compiled operators are loaded from the cache, and run."""
    user = os.getuid() if hasattr(os, "getuid") else 0  # Windows says 0 for every file's owner
    folder = Path(tempfile.gettempdir()) / f"vovnet-cache-{user}"
    with contextlib.suppress(FileExistsError):
        folder.mkdir(mode=0o700)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != user or found.st_mode & 0o022:
        return Path(tempfile.mkdtemp(prefix="vovnet-cache-"))
    return folder


def expand_home(path: str | os.PathLike[str]) -> Path:
    """Return a path with ``~`` or ``~user`` at its beginning replaced by the home folder, as shells do.

    A name that only begins with ``~`` stays as it is, such as ``~draft.jpg``. ``./~`` is a file called ``~``.

    Raises:
        InputError: The path begins with ``~``, and this user has no home folder or what follows cannot be a user.
    """
    try:
        expanded = os.path.expanduser(path)
    except ValueError as error:  # a null character, or half a character, in the user's name
        raise InputError(f"'{os.fspath(path)}' is not a path ({error})") from error
    if expanded == "~" or expanded.startswith(("~/", f"~{os.sep}")):
        raise InputError(f"'{path}': this user has no home folder (HOME is not set); write the path out")
    return Path(expanded)


def output_folder(path: str | os.PathLike[str]) -> Path:
    """Return the folder that a path of results names, with ``~`` expanded.

    Raises:
        InputError: The path contains a variable such as ``$HOME``, which only a shell replaces.
    """
    if found := VARIABLE.search(os.fspath(path)):
        raise InputError(f"--output '{path}': {found[0]} is not replaced here; write the path itself")
    return expand_home(path)
