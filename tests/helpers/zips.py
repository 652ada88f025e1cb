"""Zip archives with one checkpoint, and what else may come under that name."""

from __future__ import annotations

import io
import stat
import struct
import warnings
import zipfile
from collections.abc import Iterable

Member = tuple[zipfile.ZipInfo | str, bytes]


def zipped(members: Iterable[Member], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return an archive with these members."""
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression) as archive:
        warnings.simplefilter("ignore")  # of two members with one name
        for name, content in members:
            archive.writestr(name, content, compression)
    return file.getvalue()


def linked(name: str, target: str) -> Member:
    """Return a member that is a symbolic link."""
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info, target.encode()


def encrypted(archive: bytes) -> bytes:
    """Return an archive that says of its first member that it is encrypted."""
    changed = bytearray(archive)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = changed.index(signature) + offset
        changed[place] |= 1
    return bytes(changed)


def announcing(archive: bytes, size: int) -> bytes:
    """Return an archive that says of its first member that it has another size."""
    changed = bytearray(archive)
    for signature, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        struct.pack_into("<I", changed, changed.index(signature) + offset, size)
    return bytes(changed)


def hostile_archives(name: str, content: bytes) -> dict[str, bytes]:
    """Return archives that must not be taken for one with ``content`` under ``name`` alone; none may be unpacked."""
    good = zipped([(name, content)])
    return {
        "two members": zipped([(name, content), ("other.pth", content)]),
        "twice the same member": zipped([(name, content), (name, content)]),
        "no member": zipped([]),
        "a folder": zipped([(name + "/", b"")]),
        "in a folder": zipped([(f"weights/{name}", content)]),
        "another name": zipped([("other.pth", content)]),
        "upwards": zipped([(f"../{name}", content)]),
        "an absolute path": zipped([(f"/tmp/{name}", content)]),
        "a path of Windows": zipped([(f"..\\{name}", content)]),
        "a name with a NUL": good.replace(name.encode(), (name[:-1] + "\0").encode()),
        "a link": zipped([linked(name, "/etc/passwd")]),
        "encrypted": encrypted(good),
        "LZMA": zipped([(name, content)], zipfile.ZIP_LZMA),
        "a bomb": zipped([(name, bytes(len(content) + 8 * 2**20))]),
        "a bomb that announces less": announcing(zipped([(name, bytes(8 * 2**20))]), 1000),
        "more than there is": announcing(good, len(content) + 1000),
        "nested": zipped([(f"{name}.zip", good)]),
        "a flipped byte": good[:100] + bytes([good[100] ^ 1]) + good[101:],
        "the first half": good[: len(good) // 2],
        "without its end": good[:-4],
        "empty": b"",
        "text": b"no archive",
        "a page": b"<!DOCTYPE html><html>404</html>",
    }


HOSTILE = tuple(hostile_archives("weights.pth", b"content" * 1000))
