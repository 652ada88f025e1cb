"""ONNX Runtime Web from npm's archive: checked, fetched once, or given."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
from pathlib import Path

import pytest

from vovnet.checkpoints import download
from vovnet.errors import InputError
from vovnet.export.web import runtime
from vovnet.export.web.runtime import VERSION, web_runtime


@pytest.fixture
def archive(ort: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package as npm packs it; its checksum is the expected one."""
    path = tmp_path / f"onnxruntime-web-{VERSION}.tgz"
    with tarfile.open(path, "w:gz") as file:
        file.add(ort, "package")
    monkeypatch.setattr(runtime, "_SHA512", hashlib.sha512(path.read_bytes()).hexdigest())
    return path


def test_archive_and_folder_have_the_same_parts(archive: Path, ort: Path) -> None:
    packed, given = web_runtime(archive), web_runtime(ort)
    assert (packed.version, given.version) == (VERSION, "1.2.3")
    assert (packed.script, packed.binary) == (given.script, given.binary)
    assert gzip.decompress(packed.binary).startswith(b"\0asm")


def test_another_archive_is_refused(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes() + b"\0")
    with pytest.raises(InputError, match="SHA-512"):
        web_runtime(archive)


def test_a_package_without_the_files_is_refused(archive: Path, ort: Path) -> None:
    (ort / "dist" / "ort.wasm.bundle.min.mjs").unlink()
    with pytest.raises(InputError, match="bundle"):
        web_runtime(ort)


def test_another_package_is_refused(ort: Path) -> None:
    (ort / "package.json").write_text('{"name": "onnxruntime-node", "version": "1.2.3"}')
    with pytest.raises(InputError, match="onnxruntime-node"):
        web_runtime(ort)


def test_without_a_path_the_cache_is_used_and_checked_each_time(
    archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    fetched = []

    def receive(url: str, partial: download.PartialFile, **_: object) -> None:
        fetched.append(url)
        partial.path.write_bytes(archive.read_bytes())

    monkeypatch.setattr(download, "receive", receive)
    assert web_runtime() == web_runtime() == web_runtime(archive)
    assert fetched == [f"https://registry.npmjs.org/onnxruntime-web/-/{archive.name}"]
    (cached,) = (tmp_path / "cache").rglob("*.tgz")
    cached.write_bytes(b"damaged")
    with pytest.raises(InputError, match="damaged"):
        web_runtime()


def test_offline_the_message_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="--ort"):
        web_runtime()
