"""Download published files by URL into torch's cache: whole, checked, and once. Nothing is downloaded at import."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal
from urllib.parse import urlsplit

from vovnet.checkpoints.archives import MOST_BYTES, member_blocks, sha1_of_checkpoint
from vovnet.checkpoints.partial_file import PartialFile, claimed_partial_file
from vovnet.checkpoints.sources import LICENCE_NOTICES, Source, other_sources
from vovnet.checkpoints.transfer import LONGEST_SILENCE, TransferError, receive
from vovnet.errors import InputError
from vovnet.files import atomic_path, flush_folder, flush_to_disk
from vovnet.folders.home import user_cache
from vovnet.folders.temporary import remove_leftovers
from vovnet.terminal.streams import say_once

_MARGIN = 2**20  # bytes beside the tensors: names and pickle, 0.13 MB in pytorchcv's largest VoVNet; or what a zip adds
_PATIENCE = LONGEST_SILENCE + 60  # seconds that another process may bring nothing: it retries, then checks and unpacks


@dataclass(frozen=True)
class Checksum:
    """The checksum of a file that its publisher states."""

    algorithm: Literal["sha1", "sha256", "sha512"]
    digits: str
    """All hexadecimal digits, or the first ones."""

    def check(self, path: Path, found: str, mend: str = "", *, member: str = "") -> None:
        """Raise an error if a file has another checksum.

        Args:
            path: The file.
            found: Its checksum.
            mend: What the user can do.
            member: The name of the file in an archive, if ``path`` is one and the checksum is that of the file in it.

        Raises:
            InputError: The file has another checksum.
        """
        if not found.startswith(self.digits):
            expected = f"{self.digits}{'…' if len(self.digits) < len(found) else ''}"
            whose = f"the {_named(self.algorithm)} of {member} in it" if member else f"its {_named(self.algorithm)}"
            raise InputError(f"{path}: damaged, or another file: {whose} is {found}, expected {expected}{mend}")


def fetch_source(source: Source, *, progress: bool = True) -> Path:
    """Return the path of a source's ``.pth`` file in torch's cache, downloading it if it is not there.

    Args:
        source: The source. A SHA-1 that it states is checked before the file is placed in the cache, and each time.
        progress: Show a progress bar on stderr.

    Raises:
        InputError: As :func:`fetch`. The message names the other sources of the network.
    """
    return fetch(
        source.url,
        LICENCE_NOTICES[source.license],
        name=source.name,
        otherwise=other_sources(source.name),
        checksum=_checksum_of(source),
        most=_most_bytes(source),
        progress=progress,
    )


def fetch(
    url: str,
    notice: str = "",
    *,
    name: str = "",
    otherwise: str = "or load converted weights (`vovnet convert FILE FOLDER`)",
    checksum: Checksum | None = None,
    most: int = MOST_BYTES,
    progress: bool = True,
    folder: Path | None = None,
) -> Path:
    """Return the path of a file in torch's cache (``TORCH_HOME``), downloading it if it is not there.

    The file is complete or absent, even if the download is interrupted or several processes run it at once. The next
    call goes on with an interrupted download. Once a process, a line on stderr says where the file comes from; after a
    download also its checksum and ``notice``.

    Args:
        url: The address of the file, or of a zip archive ``FILE.zip`` that holds ``FILE`` alone; only ``FILE`` is kept.
            The last part of the address, without the query, is the name in the cache.
        notice: Text about the file's licence.
        name: The name of the weights for the line; empty means the file's name.
        otherwise: Other ways to such weights, for the error message.
        checksum: Checked before the file is placed in the cache, and each time.
        most: Largest size of the file, in bytes.
        progress: Show a progress bar on stderr.
        folder: The cache; None is torch's.

    Raises:
        InputError: The address does not answer, or with something else than the file; the connection breaks off or is
            too slow; the file is too large or has another checksum; the archive holds something else; or the file in
            the cache is damaged.
    """
    remote = PurePosixPath(urlsplit(url).path).name
    target = (folder or checkpoints_folder()) / remote.removesuffix(".zip")
    name = name or target.name
    if not _is_whole(target, checksum):
        _refuse_offline(url, target, otherwise)
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target.parent)
        with claimed_partial_file(target.with_name(f"{remote}.part"), url, _PATIENCE) as partial:
            if not _is_whole(target, checksum):  # else another process has fetched it meanwhile
                ways = f"get {target.name} by other means and put it at '{target}', {otherwise}"
                found = _download(partial, target, ways, checksum=checksum, most=most, progress=progress)
                said = f"{name}: fetched from {url} to {target}, {found}"
                say_once(str(target), f"{said}; {notice}" if notice else said)
                return target
    say_once(str(target), f"{name}: {target}, from {url}")
    return target


def unpack_source(archive: Path, source: Source) -> Path:
    """Return the path of a source's ``.pth`` file in torch's cache, taking it from an archive if it is not there.

    Args:
        archive: A zip archive of the user that has the name of the source's. Its checksum is compared each time, also
            if the file is in the cache, because the user asks for the weights in the archive.
        source: The source.

    Raises:
        InputError: The source states no SHA-1, so nothing tells whether the archive holds its file; the archive is
            damaged or holds something else; or the file in the cache is damaged.
    """
    checksum = _checksum_of(source)
    if checksum is None:
        raise InputError(
            f"{archive}: a zip archive with the name of {source.file}, whose publisher states no checksum to know it "
            "by; name the .pth file in it"
        )
    checksum.check(archive, sha1_of_checkpoint(archive))
    target = checkpoints_folder() / source.file
    if not _is_whole(target, checksum):
        _unpack(archive, target, checksum=checksum, most=_most_bytes(source))
    return target


def checkpoints_folder() -> Path:
    """Return the folder of torch's cache (``TORCH_HOME``) that checkpoints are downloaded to."""
    import torch

    # Without a home folder torch would write below a folder that is called "~".
    cache = Path(torch.hub.get_dir())
    return (user_cache() / "torch" / "hub" if cache.parts[0] == "~" else cache) / "checkpoints"


def _most_bytes(source: Source) -> int:
    return MOST_BYTES if source.tensor_bytes is None else source.tensor_bytes + _MARGIN


def _checksum_of(source: Source) -> Checksum | None:
    return None if source.sha1 is None else Checksum("sha1", source.sha1)


def _named(algorithm: str) -> str:
    return algorithm.upper().replace("SHA", "SHA-")


def _is_whole(target: Path, checksum: Checksum | None) -> bool:
    """Return True if a file is in the cache, after checking it.

    Raises:
        InputError: The file has another checksum.
    """
    if not target.exists():
        return False
    if checksum is not None:
        checksum.check(target, digits_of(target, checksum.algorithm), "; remove it to fetch it again")
    return True


def digits_of(path: Path, algorithm: str) -> str:
    """Return the hexadecimal digits of a file's checksum."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def _refuse_offline(url: str, target: Path, otherwise: str) -> None:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise InputError(
            f"{url} is not fetched, because HF_HUB_OFFLINE is set, and '{target}' is not there: connect and unset it, "
            f"put the file there, {otherwise}"
        )


def _download(
    partial: PartialFile, target: Path, ways: str, *, checksum: Checksum | None, most: int, progress: bool
) -> str:
    """Download a file, place it in the cache, and return its checksum as text.

    Args:
        partial: Where the file is while it comes.
        target: Its place in the cache.
        ways: The end of error messages.
        checksum: The expected one.
        most: Largest size of the file, in bytes.
        progress: Show a progress bar.
    """
    url = partial.url
    try:
        receive(url, partial, most=most + _MARGIN, progress=progress)
        if urlsplit(url).path.endswith(".zip"):
            found = _unpack(partial.path, target, checksum=checksum, most=most)
        else:
            found = _move(partial.path, target, checksum)
    except TransferError as error:
        kept = f"{partial.kept:,} bytes are kept, and the next try goes on from there; or " if partial.kept else ""
        raise InputError(f"{url} cannot be fetched ({error}): {kept}{ways}") from error
    except InputError as error:
        partial.discard()  # going on would not mend it
        raise InputError(f"{url}: {str(error).removeprefix(f'{partial.path}: ')}; try again, {ways}") from error
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror or str(error), str(target)) from error  # such as a full disk
    partial.discard()
    return found


def _move(source: Path, target: Path, checksum: Checksum | None) -> str:
    """Move a downloaded file to its place and return its checksum as text.

    Raises:
        InputError: The file has another checksum.
    """
    algorithm = checksum.algorithm if checksum else "sha256"
    found = digits_of(source, algorithm)
    if checksum:
        checksum.check(source, found)
    flush_to_disk(source)
    os.replace(source, target)
    flush_folder(target.parent)
    return f"{_named(algorithm)} {found}"


def _unpack(archive: Path, target: Path, *, checksum: Checksum | None, most: int) -> str:
    """Write the only file of an archive to its place and return its checksum as text.

    Raises:
        InputError: The archive holds something else, or the file has another checksum.
    """
    algorithm = checksum.algorithm if checksum else "sha256"
    digest = hashlib.new(algorithm)
    with atomic_path(target) as temporary:
        with temporary.open("wb") as file:
            for block in member_blocks(archive, name=target.name, most=most):
                file.write(block)
                digest.update(block)
        if checksum:
            checksum.check(archive, digest.hexdigest(), member=target.name)
    return f"{_named(algorithm)} {digest.hexdigest()}"
