"""The files that travel with published weights: checksums, where the weights come from, and recorded outputs.

``SHA256SUMS`` is in the form that ``sha256sum --check`` reads. ``manifest.json`` holds the rest.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vovnet.checkpoints.hub import HUB_NAME
from vovnet.errors import InputError
from vovnet.files import CONFIG_FILE, WEIGHTS_FILE, check_symlink, read_json, write_json, write_text

CARD_FILE = "README.md"
MANIFEST_FILE = "manifest.json"
SUMS_FILE = "SHA256SUMS"
SUMMED_FILES = (CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE)
PUBLISHED_FILES = (*SUMMED_FILES, SUMS_FILE)
"""All files of a published repository but :data:`EXAMPLE_FILE`. Nothing else is downloaded."""
EXAMPLE_FILE = "example.jpg"
"""The drawn example of the card, if its publisher named an image."""

FORMAT = "vovnet-manifest"
FORMAT_VERSION = 1
_KEYS = {"format", "format_version", "vovnet", "source", "outputs"}
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_SUMS_BYTES = 2**16


@dataclass(frozen=True)
class PublishedFile:
    """The file that weights were converted from."""

    file: str
    """The name of the file or of timm's folder, without the folders around it; or ``ORG/NAME@COMMIT`` on the Hub."""
    sha256: str
    """SHA-256 of the file; of a folder or repository, of its ``model.safetensors``."""
    title: str
    """The content of the file, such as ``Mask R-CNN V-39-FPN, 80 classes``."""
    name: str
    """The shipped recipe that trains the detector, or timm's name of the network."""
    license: str
    """A key of :data:`vovnet.checkpoints.sources.LICENCE_NOTICES`; ``unknown`` if the authors state none."""


@dataclass(frozen=True)
class Manifest:
    """The contents of ``manifest.json``."""

    vovnet: str
    """The version of vovnet that wrote it."""
    source: PublishedFile | None
    """The file that was converted; None for weights that were trained with vovnet."""
    outputs: Mapping[str, Mapping[str, Any]]
    """The result of :func:`vovnet.hub.reference_outputs.record_outputs`."""


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``."""
    write_json(path, {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)})


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``manifest.json``.

    Raises:
        InputError: The file is absent or unreadable, has another format or version, or has wrong keys or types.
    """
    path = folder / MANIFEST_FILE
    check_symlink(folder, MANIFEST_FILE)
    values = read_json(path)
    if values.get("format") != FORMAT or values.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: format {values.get('format')!r:.80}, version {values.get('format_version')!r:.80}; this vovnet "
            f"reads '{FORMAT}', version {FORMAT_VERSION}"
        )
    source = values.get("source")
    good = set(values) == _KEYS and isinstance(values["vovnet"], str) and isinstance(values["outputs"], dict)
    if not good or not (source is None or _is_published_file(source)):
        raise InputError(f"{path}: expected the keys {', '.join(sorted(_KEYS))}, as `vovnet convert` writes them")
    return Manifest(values["vovnet"], None if source is None else PublishedFile(**source), values["outputs"])


def _is_published_file(value: object) -> bool:
    if not isinstance(value, dict) or set(value) != set(PublishedFile.__dataclass_fields__):
        return False
    if not all(isinstance(entry, str) for entry in value.values()):
        return False
    repository, at, commit = value["file"].partition("@")
    if at and HUB_NAME.fullmatch(repository) and _COMMIT.fullmatch(commit):
        return True
    return not re.search(r"[/\\]", value["file"])


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(path: Path, files: Sequence[Path]) -> None:
    """Write ``SHA256SUMS`` for files that will be in the same folder."""
    write_text(path, "".join(f"{sha256_of(file)}  {file.name}\n" for file in files))


def check_sums(folder: Path, names: Sequence[str] = SUMMED_FILES) -> None:
    """Check the files of a folder against its ``SHA256SUMS``.

    Raises:
        InputError: ``SHA256SUMS`` is absent, malformed or lacks a file; or a file is absent, a link out of the folder,
            or has another checksum. The message names all of these files.
    """
    sums = _read_sums(folder)
    problems = []
    if EXAMPLE_FILE in sums and os.path.lexists(folder / EXAMPLE_FILE):  # not downloaded with the others
        names = (*names, EXAMPLE_FILE)
    for name in names:
        check_symlink(folder, name)
        if name not in sums:
            problems.append(f"{name} is not in {SUMS_FILE}")
        elif not (folder / name).is_file():
            problems.append(f"{name} is missing")
        elif (found := sha256_of(folder / name)) != sums[name]:
            problems.append(f"{name} has SHA-256 {found}, expected {sums[name]}")
    if problems:
        raise InputError(f"{folder}: {'; '.join(problems)}: the files are damaged or were changed; fetch them again")


def _read_sums(folder: Path) -> dict[str, str]:
    path = folder / SUMS_FILE
    check_symlink(folder, SUMS_FILE)
    if not path.is_file():
        raise InputError(f"{folder} has no {SUMS_FILE}; expected a folder that `vovnet convert` or `publish` wrote")
    sums: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines() if path.stat().st_size < _MAX_SUMS_BYTES else [""]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    for line in lines:
        match = _LINE.fullmatch(line)
        # A name with a folder in it would make the check, and everyone who relies on it, read another file.
        if match is None or match[2] not in (*SUMMED_FILES, EXAMPLE_FILE) or match[2] in sums:
            raise InputError(
                f"{path}: expected a SHA-256 and one of {', '.join(SUMMED_FILES)} a line, got {line!r:.90}"
            )
        sums[match[2]] = match[1]
    return sums
