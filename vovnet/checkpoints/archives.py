"""Zip archives that hold one checkpoint file, as data that may come from anyone.

The file is read as a stream. Nothing is written by the names in an archive, and no more is read than it announces.
"""

from __future__ import annotations

import hashlib
import re
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path

from vovnet.errors import InputError, reason
from vovnet.files import DAMAGED_ZIP

MOST_BYTES = 2**30
"""Largest size of a file in an archive. The largest published detector has a quarter of it."""

_CHUNK = 2**20
_UNIX = 3  # the system whose file types are in the upper half of external_attr
_ENCRYPTED = 0x1


def is_archive(path: Path) -> bool:
    """Return True for a zip archive that is no checkpoint itself: ``torch.save`` writes zip files, too."""
    if not zipfile.is_zipfile(path):
        return path.suffix == ".zip" and path.is_file()
    try:
        with zipfile.ZipFile(path) as archive:
            return not any(re.fullmatch(r"[^/]+/data\.pkl", name) for name in archive.namelist())
    except DAMAGED_ZIP:
        return True


def member_blocks(path: Path, *, name: str | None = None, most: int = MOST_BYTES) -> Iterator[bytes]:
    """Yield the content of the only file in an archive.

    Args:
        path: The archive.
        name: The name that the file must have; None allows any plain name that ends in ``.pth`` or ``.pt``.
        most: Largest size of the file.

    Raises:
        InputError: The archive is damaged, or holds something else than one plain file of this name and size, stored or
            deflated.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(_only_member(archive, name, most)) as file:
            while block := file.read(_CHUNK):
                yield block
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except DAMAGED_ZIP as error:
        raise InputError(
            f"{path}: not a zip archive, or a truncated or damaged one ({reason(error)}); fetch it again"
        ) from error


def sha1_of_checkpoint(path: Path) -> str:
    """Return the SHA-1 of a checkpoint file, or of the one in an archive, in hexadecimal digits."""
    if not is_archive(path):
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha1").hexdigest()
    digest = hashlib.sha1()
    for block in member_blocks(path):
        digest.update(block)
    return digest.hexdigest()


def _only_member(archive: zipfile.ZipFile, name: str | None, most: int) -> zipfile.ZipInfo:
    """Return the only member of an archive, after checking its name, kind and size."""
    members = archive.infolist()
    expected = f"expected one file, {name or 'a .pth checkpoint'}"
    if len(members) != 1:
        shown = ", ".join(member.filename for member in members[:3]) or "nothing"
        raise InputError(f"the archive holds {len(members)} members ({shown}); {expected}")
    member = members[0]
    given = member.orig_filename
    if given != name if name is not None else not re.fullmatch(r"\w[\w.+-]*\.(pth|pt)", given):
        raise InputError(f"the archive holds {given[:100]!r}; {expected}")
    kind = stat.S_IFMT(member.external_attr >> 16) if member.create_system == _UNIX else 0
    if kind not in (0, stat.S_IFREG):
        raise InputError(f"{given} in the archive is a link or another special file; {expected}")
    if member.flag_bits & _ENCRYPTED:
        raise InputError(f"{given} in the archive is encrypted; {expected} that is not")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise InputError(f"{given} in the archive is compressed by method {member.compress_type}; expected deflate")
    if member.file_size > most:
        raise InputError(f"{given} in the archive has {member.file_size:,} bytes; {expected}, of at most {most:,}")
    return member
