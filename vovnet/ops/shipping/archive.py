"""Read and write wheels: zip archives with a record of their files (PEP 427)."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from collections.abc import Mapping
from pathlib import Path

from vovnet.files import atomic_path

MOMENT = (1980, 1, 1, 0, 0, 0)
"""The date of every file in an archive, so that equal contents make equal archives."""


def read_wheel(path: Path) -> dict[str, bytes]:
    """Return the files of a wheel without its record."""
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if not name.endswith(("/", ".dist-info/RECORD"))]
        return {name: archive.read(name) for name in names}


def write_wheel(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a wheel with these files and their record. The files of ``*.dist-info`` come last."""
    info = next(name.partition("/")[0] for name in files if name.endswith(".dist-info/WHEEL"))
    names = sorted(files, key=lambda name: (name.startswith(info), name))
    rows = [f"{name},sha256={record_digest(files[name])},{len(files[name])}" for name in names]
    record = f"{info}/RECORD"
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in names:
            _add(archive, name, files[name])
        _add(archive, record, "".join(f"{row}\n" for row in (*rows, f"{record},,")).encode())


def record_digest(content: bytes) -> str:
    """Return the SHA-256 of a file as records of wheels have it."""
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    entry = zipfile.ZipInfo(name, MOMENT)
    entry.external_attr = (0o100755 if name.endswith(".so") else 0o100644) << 16
    entry.compress_type = zipfile.ZIP_DEFLATED
    archive.writestr(entry, content)
