"""The claim of a command to its output folder."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from vovnet.errors import InputError, shown
from vovnet.folders.home import output_folder
from vovnet.folders.locks import held_lock
from vovnet.folders.temporary import LOCK_FILE, is_leftover, remove_leftovers

_PAUSE_SECONDS = 0.2
_claims: dict[str, tuple[int, int]] = {}
"""Real path of each folder that is claimed → process and thread. The same thread may claim a folder again."""


@contextlib.contextmanager
def claimed_folder(
    folder: str | os.PathLike[str], *, overwrite: bool = False, resume: bool = False, patience: float = 0.0
) -> Iterator[Path]:
    """Hold an output folder for the length of a ``with`` block; a second command is refused.

    The folder is created if it does not exist. What a killed command left half-written in it is removed. A folder
    that was created here and is empty at the end, such as after an error, is removed again.

    Args:
        folder: The folder.
        overwrite: Accept a folder that is not empty; the caller replaces files in it.
        resume: Accept a folder that is not empty; the caller goes on with what is in it.
        patience: Seconds to wait for another command to end.

    Raises:
        InputError: Another command holds the folder; the folder is not empty and neither ``overwrite`` nor ``resume``
            is given, or both are; the path is a file, or the folder is not writable.
    """
    if overwrite and resume:
        raise InputError("--resume and --overwrite: expected one of them, got both")
    folder = output_folder(folder)
    with _held(folder, patience):
        if not (overwrite or resume) and foreign_entries(folder):
            raise InputError(
                f"--output '{folder}': the folder is not empty; name a new one, or give --overwrite (or --resume or "
                "--auto-resume, for training)"
            )
        yield folder


def foreign_entries(folder: Path) -> list[str]:
    """Return the sorted names of what is in a claimed folder, without locks and temporary files."""
    return sorted(path.name for path in folder.iterdir() if path.name != LOCK_FILE and not is_leftover(path))


@contextlib.contextmanager
def _held(folder: Path, patience: float) -> Iterator[None]:
    claim, key = (os.getpid(), threading.get_ident()), os.path.realpath(folder)
    if _claims.get(key) == claim:
        yield
        return
    with contextlib.ExitStack() as stack:
        try:
            _make_and_lock(folder, stack, patience)
        except BlockingIOError as error:
            raise InputError(
                f"--output '{folder}': another command is writing to this folder ({_holder(folder)}); wait until it "
                "has ended, or name another folder"
            ) from error
        except (FileExistsError, NotADirectoryError) as error:
            raise InputError(
                f"--output '{folder}': expected a folder, but there is a file; name another folder"
            ) from error
        except OSError as error:
            where = f"{LOCK_FILE}: " if os.path.lexists(folder / LOCK_FILE) else ""
            raise InputError(
                f"--output '{folder}': cannot be written ({where}{error.strerror}); name another folder"
            ) from error
        _claims[key] = claim
        stack.callback(_claims.pop, key, None)
        remove_leftovers(folder)
        yield


def _make_and_lock(folder: Path, stack: contextlib.ExitStack, patience: float) -> None:
    """Create and lock the folder; ``stack`` undoes both."""
    until = time.monotonic() + patience
    while True:
        attempt = contextlib.ExitStack()
        try:
            with attempt:
                attempt.callback(_remove_empty, _make(folder), os.getpid())
                lock = attempt.enter_context(held_lock(folder / LOCK_FILE))
                attempt.callback(_unlink, folder / LOCK_FILE, os.getpid())
                _sign(folder, lock)
                stack.enter_context(attempt.pop_all())
                return
        except BlockingIOError:
            if time.monotonic() >= until:
                raise
        except FileNotFoundError:  # another command has just removed the folder that it had made
            if time.monotonic() >= until + 1:
                raise
        time.sleep(_PAUSE_SECONDS)


def _make(folder: Path) -> list[Path]:
    """Create a folder; return the folders that did not exist, the innermost first."""
    missing = []
    for path in (folder, *folder.parents):
        if os.path.lexists(path):
            break
        missing.append(path)
    folder.mkdir(parents=True, exist_ok=True)
    return missing


def _remove_empty(made: list[Path], process: int) -> None:
    with contextlib.suppress(OSError):  # a folder that is not empty stays, and the folders above it
        for path in made if os.getpid() == process else ():
            path.rmdir()


def _unlink(lock_file: Path, process: int) -> None:
    if os.getpid() == process:
        with contextlib.suppress(OSError):  # Windows removes no open file; a lock that is left does no harm
            lock_file.unlink()


def _sign(folder: Path, lock: int | None) -> None:
    """Write into the lock who holds it."""
    if lock is None:
        warnings.warn(
            f"--output '{folder}': the file system has no locks; start no second command with this folder",
            RuntimeWarning,
            stacklevel=2,
        )
    elif os.fstat(lock).st_nlink == 1:  # a hard link would be another file, too
        with contextlib.suppress(OSError):  # the disk may be full
            os.ftruncate(lock, 0)
            os.write(lock, f"process {os.getpid()} on {socket.gethostname()}".encode())


def _holder(folder: Path) -> str:
    try:
        with (folder / LOCK_FILE).open("rb") as file:
            return shown(file.read(100).decode("utf-8", "replace")) or "unknown"
    except OSError:
        return "unknown"
