"""Atomic writes (a temporary file, flushed to the disk, then renamed), JSON, and checks of links."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from vovnet.errors import InputError, reason
from vovnet.folders.locks import held_lock
from vovnet.folders.temporary import temporary_path

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
MODEL_FILES = (CONFIG_FILE, WEIGHTS_FILE)
"""The files of a folder with a model, in timm's form or a detector's."""
DAMAGED_ZIP = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, RuntimeError, ValueError)
"""The errors that ``zipfile`` raises for damaged and hostile archives, OSError for an offset that no file has."""

_MAX_BYTES = 16 * 2**20
_MAX_DEPTH = 64


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the same folder, which replaces ``path`` if the block ends without an error.

    Until then, and after an error, an existing file at ``path`` is unchanged. The folder is created if it does not
    exist. The temporary name has the suffix of ``path``, because writers such as Matplotlib infer the format from it.
    A killed process leaves the temporary file; the next command that claims the folder removes it.

    Args:
        path: The file to write.
        flush: Wait until the file is on the disk. Without it, a power failure can damage the file.

    Raises:
        OSError: The system's error. Its ``filename`` is ``path`` if the system named no file, as for a full disk.
    """
    path = Path(path)
    temporary = temporary_path(path.parent, path.suffix)
    try:
        _make_folder(path.parent)
        # Windows neither removes nor renames a file that is open.
        with held_lock(temporary) if os.name != "nt" else contextlib.nullcontext():
            yield temporary
            if flush:
                flush_to_disk(temporary)
            os.replace(temporary, path)
        if flush:
            flush_folder(path.parent)
    except OSError as error:
        if error.filename is None or error.filename in (temporary, str(temporary)):
            # The user does not know the temporary name. The error of a failed rename has both names.
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        # If a file is in the place of a parent folder, the system's error is clearer than Python's.
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from error


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a JSON file atomically, indented by two spaces. NaN and Infinity are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
        InputError: The file is unreadable, huge, not JSON, not an object or deeply nested, or a text is not Unicode.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path}: larger than {_MAX_BYTES // 2**20} MiB, which no such file is")
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    except (ValueError, RecursionError) as error:  # ValueError also for integers of thousands of digits
        raise InputError(f"{path}: not valid JSON ({reason(error)}); the file is damaged or was edited") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object, got {type(values).__name__}")
    if _is_nested_deeper(values, _MAX_DEPTH):  # recursive functions may fail on it
        raise InputError(f"{path}: nested deeper than {_MAX_DEPTH} levels, which no such file is")
    try:
        json.dumps(values, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can escape half a surrogate pair, which no file or terminal accepts
        raise InputError(f"{path}: {error.object[error.start]!a} in a text is half a character") from error
    return values


def _is_nested_deeper(value: object, levels: int) -> bool:
    level: list[object] = [value]
    for _ in range(levels):
        level = [entry for part in level for entry in _entries(part)]
    return bool(level)


def _entries(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def flush_to_disk(path: str | os.PathLike[str]) -> None:
    """Wait until the contents of a file are on the disk, so that it is complete when it is renamed."""
    # Windows flushes only what is open for writing.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, if the file system supports that."""
    with contextlib.suppress(OSError):
        flush_to_disk(path)


def check_symlink(folder: Path, name: str) -> None:
    """Refuse a file that is a symbolic link to a place outside its folder: a hostile archive may contain one.

    The cache of huggingface_hub contains links from ``snapshots/COMMIT/`` to ``blobs/``. Those are allowed.

    Raises:
        InputError: The link leads out of the folder.
    """
    path = folder / name
    if not path.is_symlink():
        return
    home = folder.resolve()
    if home.parent.name == "snapshots":
        home = home.parent.parent
    if not path.resolve().is_relative_to(home):
        raise InputError(f"{path}: a link that leads out of its folder; put the file itself there")
