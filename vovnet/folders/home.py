"""The user's home and cache folders, also of a user who has none."""

from __future__ import annotations

import contextlib
import functools
import os
import stat
import tempfile
from pathlib import Path

from vovnet.errors import InputError, reason


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
    """Return a path with ``~`` and ``~user`` at its beginning replaced by the home folder.

    Raises:
        InputError: There is no such user, or this user has no home folder.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise InputError(f"'{path}': the home folder for '~' is not known ({reason(error)}); write it out") from error
