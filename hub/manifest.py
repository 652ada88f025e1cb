"""What travels with published weights: their checksums, where they come from, and what they compute.

``SHA256SUMS`` is in the form that ``sha256sum --check`` reads; ``manifest.json`` holds the rest.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vovnet.errors import InputError
from vovnet.files import CONFIG_FILE, WEIGHTS_FILE, check_symlink, read_json, write_json, write_text

CARD_FILE = "README.md"
MANIFEST_FILE = "manifest.json"
SUMS_FILE = "SHA256SUMS"
SUMMED_FILES = (CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE)
PUBLISHED_FILES = (*SUMMED_FILES, SUMS_FILE)
"""All that a published repository consists of; nothing else is ever uploaded or downloaded."""

FORMAT = "vovnet-manifest"
FORMAT_VERSION = 1
_KEYS = {"format", "format_version", "vovnet", "source", "outputs"}
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")


@dataclass(frozen=True)
class Source:
    """The published file that weights were converted from."""

    file: str
    """Its name, without folders."""
    sha256: str
    title: str
    """Such as ``Mask R-CNN V-39-FPN, 80 classes``."""
    name: str
    """The shipped recipe that trains it, or timm's name of the network."""
    license: str
    """``cc-by-nc-4.0``, or ``unknown`` where its authors state none."""


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` says."""

    vovnet: str
    """The version that wrote it."""
    source: Source | None
    """None for weights that were trained here."""
    outputs: Mapping[str, Mapping[str, Any]]
    """See :func:`vovnet.hub.reference_outputs.record_outputs`."""


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``."""
    write_json(path, {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(manifest)})


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``manifest.json``.

    Raises:
        InputError: absent, unreadable, of another format or version, or with keys or types that do not belong.
    """
    path = folder / MANIFEST_FILE
    check_symlink(folder, MANIFEST_FILE)
    values = read_json(path)
    if values.get("format") != FORMAT or values.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: format {values.get('format')!r}, version {values.get('format_version')!r}; this vovnet reads "
            f"'{FORMAT}', version {FORMAT_VERSION}"
        )
    source = values.get("source")
    fields = set(Source.__dataclass_fields__)
    good = set(values) == _KEYS and isinstance(values["vovnet"], str) and isinstance(values["outputs"], dict)
    if good and source is not None:
        good = isinstance(source, dict) and set(source) == fields and all(isinstance(v, str) for v in source.values())
        good = good and re.search(r"[/\\]", source["file"]) is None
    if not good:
        raise InputError(f"{path}: expected the keys {', '.join(sorted(_KEYS))}, as `vovnet convert` writes them")
    return Manifest(values["vovnet"], None if source is None else Source(**source), values["outputs"])


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(path: Path, files: Sequence[Path]) -> None:
    """Write ``SHA256SUMS`` for files that will lie beside it."""
    write_text(path, "".join(f"{sha256_of(file)}  {file.name}\n" for file in files))


def check_sums(folder: Path, names: Sequence[str] = SUMMED_FILES) -> None:
    """Hold the files of a folder to its ``SHA256SUMS``.

    Raises:
        InputError: there is none, it is not in its form or lacks a file, or a file is absent, a link elsewhere or not
            what was summed; all of these are named.
    """
    sums = _read_sums(folder)
    problems = []
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
        lines = path.read_text(encoding="utf-8").splitlines() if path.stat().st_size < 2**16 else [""]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    for line in lines:
        match = _LINE.fullmatch(line)
        # A name with a folder in it would lead the check, and whoever trusts it, elsewhere.
        if match is None or match[2] not in SUMMED_FILES or match[2] in sums:
            raise InputError(
                f"{path}: expected a SHA-256 and one of {', '.join(SUMMED_FILES)} a line, got {line!r:.90}"
            )
        sums[match[2]] = match[1]
    return sums
