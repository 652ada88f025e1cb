"""ONNX Runtime Web: fetched from npm's registry once, or taken from where the user has it."""

from __future__ import annotations

import gzip
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vovnet.errors import InputError, reason
from vovnet.files import read_json
from vovnet.folders.home import user_cache

PACKAGE = "onnxruntime-web"
VERSION = "1.30.0"
_URL = f"https://registry.npmjs.org/{PACKAGE}/-/{PACKAGE}-{VERSION}.tgz"
_SHA512 = (  # `npm view onnxruntime-web@1.30.0 dist.integrity`, in hexadecimal digits
    "ab4cbe26baedba45d2cec05610c71c55fa97db92d19a8b171c5f8269126683ca590a5cdc57bb2f35ce2b298de32f4d956fb42644c0ecd528a0a91e025c07ca61"
)
_MOST_BYTES = 64 * 2**20
# The smallest build: all operators on the CPU. Those with WebGPU are twice as large.
_SCRIPT, _BINARY = "dist/ort.wasm.bundle.min.mjs", "dist/ort-wasm-simd-threaded.wasm"


@dataclass(frozen=True)
class WebRuntime:
    """The parts of ONNX Runtime Web that a page needs."""

    version: str
    script: bytes
    """A JavaScript module."""
    binary: bytes
    """WebAssembly, packed with gzip: a quarter of its size, whatever the server does."""


def web_runtime(given: Path | None = None) -> WebRuntime:
    """Return ONNX Runtime Web.

    Args:
        given: a folder of the npm package (``node_modules/onnxruntime-web``), or its archive
            ``onnxruntime-web-1.30.0.tgz``. None takes the archive in the user's cache, and fetches it from
            ``registry.npmjs.org`` if it is not there. The archive's SHA-512 is checked each time.

    Raises:
        InputError: it cannot be fetched, or it is another archive, or a folder without the files.
    """
    from vovnet.checkpoints.download import Checksum, digits_of, fetch

    if given is not None and given.is_dir():
        return _from_folder(given)
    checksum = Checksum("sha512", _SHA512)
    if given is None:
        given = fetch(
            _URL,
            "its licence is MIT, Copyright (c) Microsoft Corporation",
            name=f"{PACKAGE} {VERSION}",
            otherwise="or give --ort: the file, or the folder node_modules/onnxruntime-web",
            checksum=checksum,
            most=_MOST_BYTES,
            folder=user_cache() / "vovnet" / "npm",
        )
    elif not given.is_file():
        raise InputError(f"--ort {given}: no such file or folder; expected {PACKAGE}-{VERSION}.tgz or its folder")
    else:
        found = digits_of(given, "sha512")
        checksum.check(given, found, f"; expected {PACKAGE}-{VERSION}.tgz of npm, or a folder of another version")
    return _from_archive(given)


def _from_folder(folder: Path) -> WebRuntime:
    facts = read_json(folder / "package.json")
    if facts.get("name") != PACKAGE or not isinstance(facts.get("version"), str):
        raise InputError(f"--ort {folder}: expected the npm package {PACKAGE}, got {facts.get('name')!r}")
    return _taken(facts["version"], lambda name: (folder / name).read_bytes(), folder)


def _from_archive(path: Path) -> WebRuntime:
    with tarfile.open(path) as archive:

        def member(name: str) -> bytes:
            file = archive.extractfile(f"package/{name}")
            if file is None:
                raise KeyError(name)
            with file:
                return file.read()

        return _taken(VERSION, member, path)


def _taken(version: str, read: Callable[[str], bytes], where: Path) -> WebRuntime:
    try:
        script, binary = read(_SCRIPT), read(_BINARY)
    except (KeyError, OSError) as error:
        raise InputError(
            f"--ort {where}: has no {_SCRIPT} or {_BINARY} ({reason(error)}); expected {PACKAGE} {VERSION}"
        ) from error
    return WebRuntime(version, script, gzip.compress(binary, mtime=0))
