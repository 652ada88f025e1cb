"""Locks that the system releases when their process ends, however it ends."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_FAR = 2**30  # Windows locks bytes, and nobody can read a locked one: this one is behind the end of the file
_open: set[int] = set()
"""Descriptors of the locked files of this process."""


def _close_all() -> None:
    """Close a forked child's copies of the locks, so that a loader worker does not keep the lock of a dead process."""
    while _open:
        with contextlib.suppress(OSError):
            os.close(_open.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_all)  # a child that runs another program gets no copy


@contextlib.contextmanager
def held_lock(path: Path, *, create: bool = True) -> Iterator[int | None]:
    """Lock a file for the length of a ``with`` block, against other processes and other blocks of this one.

    Args:
        path: The file. The lock belongs to it, also if it is renamed.
        create: Create the file if it does not exist.

    Yields:
        The descriptor of the file, or None if its file system has no locks.

    Raises:
        BlockingIOError: Another block has the lock.
        OSError: The file cannot be opened, or is a link or anything else but a plain file.
    """
    process = os.getpid()
    descriptor, locked = _open_locked(path, os.O_CREAT if create else 0)
    try:
        yield descriptor if locked else None
    finally:
        if os.getpid() == process:  # a forked child has closed its copy
            _open.discard(descriptor)
            os.close(descriptor)


def _open_locked(path: Path, flags: int) -> tuple[int, bool]:
    while True:
        descriptor = os.open(path, os.O_RDWR | flags | getattr(os, "O_NOFOLLOW", 0), 0o666)
        _open.add(descriptor)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "not a plain file", str(path))
            locked = _acquire(descriptor)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), os.lstat(path)):
                    return descriptor, locked
        except BaseException:
            _open.discard(descriptor)
            os.close(descriptor)
            raise
        # The former holder removed or renamed the file after it was opened here, so the lock protects nothing.
        _open.discard(descriptor)
        os.close(descriptor)


def _acquire(descriptor: int) -> bool:
    """Lock an open file without waiting. Return False if its file system has no locks."""
    try:
        _lock(descriptor)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
        return False
    return True


def _lock(descriptor: int) -> None:
    try:
        import fcntl
    except ModuleNotFoundError:
        msvcrt: Any = importlib.import_module("msvcrt")
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
