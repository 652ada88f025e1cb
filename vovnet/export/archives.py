"""The metadata of ``.pt2`` and TorchScript files, which are zip archives: read before any of their code is loaded."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

from vovnet.errors import InputError, reason
from vovnet.export.metadata import KEY
from vovnet.files import DAMAGED_ZIP

_MAX_BYTES = 16 * 2**20


def stored_text(path: Path) -> str | None:
    """Return the text that `vovnet export` stored in an archive, or None if there is none.

    Raises:
        InputError: the file is no zip archive, or is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return next(_texts(archive), None)
    except DAMAGED_ZIP as error:
        raise InputError(f"{path}: is not an archive of PyTorch, or is truncated ({reason(error)})") from error


def is_torchscript(path: Path) -> bool:
    """Return True if a file is TorchScript, which shares its suffix ``.pt`` with other files of PyTorch."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except DAMAGED_ZIP:
        return False
    return any(name.endswith("/constants.pkl") for name in names) and any("/code/" in name for name in names)


def _texts(archive: zipfile.ZipFile) -> Iterator[str]:
    for entry in archive.infolist():
        if entry.file_size > _MAX_BYTES:
            continue
        if entry.filename.endswith(f"/extra/{KEY}"):
            yield archive.read(entry).decode("utf-8")
        if entry.filename.endswith("_metadata.json"):  # of AOTInductor; each of its libraries has one
            values = json.loads(archive.read(entry))
            if isinstance(values, dict) and isinstance(values.get(KEY), str):
                yield values[KEY]
