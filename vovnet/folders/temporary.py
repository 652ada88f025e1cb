"""Temporary files and folders, which the next command removes if a killed one left them."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from vovnet.folders.locks import held_lock

LOCK_FILE = ".vovnet-lock"
_NAME = re.compile(r"(\.tmp|vovnet)-[0-9a-f]{16}(\.[^.]*)?")


def temporary_path(folder: Path, suffix: str = "") -> Path:
    """Return a new name in a folder. Whoever writes to it holds its lock, so that nobody else removes it."""
    return folder / f".tmp-{secrets.token_hex(8)}{suffix}"


@contextlib.contextmanager
def scratch_folder(parent: Path | None = None) -> Iterator[Path]:
    """Yield a new folder, and remove it after the ``with`` block.

    Args:
        parent: Where to make it; None means the system's folder for temporary files. Folders and files that a killed
            process left there are removed.
    """
    path = temporary_path(parent) if parent else Path(tempfile.gettempdir(), f"vovnet-{secrets.token_hex(8)}")
    remove_leftovers(path.parent)
    path.mkdir(mode=0o700)
    process = os.getpid()
    try:
        with held_lock(path / LOCK_FILE):
            yield path
    finally:
        if os.getpid() == process:
            shutil.rmtree(path, ignore_errors=True)


def is_leftover(path: Path) -> bool:
    """True if a file or folder has a name that :func:`temporary_path` gives, and is no link."""
    return _NAME.fullmatch(path.name) is not None and not path.is_symlink()


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders of processes that do not exist any more.

    Links, other users' files, and everything on file systems without locks, where nobody knows, stay.
    """
    with contextlib.suppress(OSError):
        for path in [Path(entry.path) for entry in os.scandir(folder) if _NAME.fullmatch(entry.name)]:
            with contextlib.suppress(OSError):  # BlockingIOError: its process lives
                _remove(path)


def _remove(path: Path) -> None:
    if not is_leftover(path) or (hasattr(os, "getuid") and path.lstat().st_uid != os.getuid()):
        return
    folder = path.is_dir()
    with held_lock(path / LOCK_FILE if folder else path, create=False) as lock:
        if lock is not None and folder:
            shutil.rmtree(path)
        elif lock is not None:
            path.unlink()
