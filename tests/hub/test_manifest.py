"""Checksums and the manifest: read strictly, because they may come from anyone."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hub_folders import Made
from support import contents

from vovnet.errors import InputError
from vovnet.hub.manifest import (
    PUBLISHED_FILES,
    SUMMED_FILES,
    Manifest,
    PublishedFile,
    check_sums,
    read_manifest,
    sha256_of,
    write_manifest,
    write_sums,
)

Copy = Callable[[Path], Path]
SOURCE = PublishedFile("a.pth", "0" * 64, "VoVNet-39, 1000 classes", "vovnet39", "unknown")


def refused(function: Callable[..., Any], *arguments: object) -> str:
    with pytest.raises(InputError) as error:
        function(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture
def folder(slim: Made, copied: Copy) -> Path:
    return copied(slim.folder)


def test_what_is_published_is_a_fixed_list() -> None:
    assert sorted(PUBLISHED_FILES) == ["README.md", "SHA256SUMS", "config.json", "manifest.json", "model.safetensors"]
    assert set(PUBLISHED_FILES) - set(SUMMED_FILES) == {"SHA256SUMS"}


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"abc" * 100_000)
    assert sha256_of(tmp_path / "f") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_coreutils_accept_the_sums(slim: Made) -> None:
    if shutil.which("sha256sum") is None:
        pytest.skip("needs coreutils' sha256sum")
    command = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    result = subprocess.run(command, cwd=slim.folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert sorted(result.stdout.splitlines()) == sorted(f"{name}: OK" for name in SUMMED_FILES)


def test_sums_that_coreutils_wrote_are_read(folder: Path) -> None:
    """Both forms of a line are read, text and binary."""
    if shutil.which("sha256sum") is None:
        pytest.skip("needs coreutils' sha256sum")
    for options in (["--text"], ["--binary"]):
        command = ["sha256sum", *options, *SUMMED_FILES]
        (folder / "SHA256SUMS").write_bytes(subprocess.run(command, cwd=folder, capture_output=True).stdout)
        check_sums(folder)


def test_the_sums_are_of_the_files(slim: Made) -> None:
    lines = (slim.folder / "SHA256SUMS").read_text().splitlines()
    files = contents(slim.folder)
    assert sorted(lines) == sorted(f"{hashlib.sha256(files[name]).hexdigest()}  {name}" for name in SUMMED_FILES)


@pytest.mark.parametrize("name", SUMMED_FILES)
def test_a_flipped_bit_and_a_missing_file_are_named(name: str, folder: Path) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    message = refused(check_sums, folder)
    assert f"{name} has SHA-256 {hashlib.sha256(data).hexdigest()}" in message
    assert not any(f"{other} has" in message for other in SUMMED_FILES if other != name)
    (folder / name).unlink()
    assert f"{name} is missing" in refused(check_sums, folder)


def test_all_that_is_wrong_is_named_at_once(folder: Path) -> None:
    (folder / "README.md").unlink()
    (folder / "config.json").write_text("{}")
    message = refused(check_sums, folder)
    assert "README.md is missing" in message
    assert "config.json has SHA-256" in message


def test_a_folder_without_sums(folder: Path) -> None:
    (folder / "SHA256SUMS").unlink()
    assert "has no SHA256SUMS" in refused(check_sums, folder)


def test_a_file_that_is_not_summed(folder: Path) -> None:
    path = folder / "SHA256SUMS"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if "config.json" not in line))
    assert "config.json is not in SHA256SUMS" in refused(check_sums, folder)


SUM = "0" * 64


@pytest.mark.parametrize(
    "line",
    [
        f"{SUM}  ../model.safetensors",
        f"{SUM}  /etc/passwd",
        f"{SUM}  ./config.json",
        f"{SUM}  sub/config.json",
        f"{SUM}  SHA256SUMS",
        f"{SUM}  last.pt",
        f"{SUM}  config.json ",
        f"{SUM} config.json",
        f"{SUM[1:]}  config.json",
        f"{SUM.replace('0', 'A')}  config.json",
        f"\\{SUM}  config.json",
        "config.json",
    ],
)
def test_lines_that_do_not_belong_are_refused(line: str, folder: Path) -> None:
    """Each of them beside the right sums, of which none is wrong."""
    path = folder / "SHA256SUMS"
    path.write_text(f"{line}\n{path.read_text()}")
    assert "SHA256SUMS" in refused(check_sums, folder)


def test_a_name_that_stands_twice_is_refused(folder: Path) -> None:
    path = folder / "SHA256SUMS"
    lines = path.read_text().splitlines(True)
    path.write_text("".join([*lines, lines[0]]))
    assert "SHA256SUMS" in refused(check_sums, folder)


def test_sums_that_are_not_text_or_huge(folder: Path) -> None:
    path = folder / "SHA256SUMS"
    good = path.read_bytes()
    path.write_bytes(b"\xff\xfe" + good)
    assert "SHA256SUMS" in refused(check_sums, folder)
    path.write_bytes(good + b"\n" * 100_000)
    assert "SHA256SUMS" in refused(check_sums, folder)
    path.unlink()
    path.mkdir()
    assert "SHA256SUMS" in refused(check_sums, folder)


@pytest.mark.parametrize("name", PUBLISHED_FILES)
def test_links_out_of_the_folder_are_not_followed(name: str, folder: Path, tmp_path: Path) -> None:
    """Even where the file there is the right one."""
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    message = refused(check_sums, folder)
    assert f"{name}: a link that leads out of its folder" in message


def test_links_inside_the_hubs_cache_are_followed(slim: Made, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--me--it" / "snapshots" / "abc"
    blobs = tmp_path / "models--me--it" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for name, data in contents(slim.folder).items():
        (blobs / name).write_bytes(data)
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    check_sums(snapshot)


def test_a_manifest_comes_back(tmp_path: Path) -> None:
    for source in (SOURCE, dataclasses.replace(SOURCE, file=f"org/name@{'0f' * 20}"), None):
        written = Manifest("1.2", source, {"logits": {"shape": [1], "largest": 1.0, "values": [1.0]}})
        write_manifest(tmp_path / "manifest.json", written)
        assert read_manifest(tmp_path) == written


def test_a_manifest_says_what_a_reader_needs(slim: Made) -> None:
    values = json.loads((slim.folder / "manifest.json").read_text())
    assert (values["format"], values["format_version"]) == ("vovnet-manifest", 1)
    assert values["source"] == {
        "file": slim.file.name,
        "sha256": hashlib.sha256(slim.file.read_bytes()).hexdigest(),
        "title": "VoVNet-27-slim, 7 classes",
        "name": "vovnet27_slim",
        "license": "unknown",
    }
    assert set(values["outputs"]) == {"features", "logits"}
    assert values["outputs"]["logits"]["shape"] == [1, 7]


def changed(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda values: values.update(changes)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (changed(format="vovnet-detector"), "format 'vovnet-detector'"),
        (changed(format_version=2), "version 2"),
        (changed(format_version="1"), "version '1'"),
        (lambda values: values.pop("format_version"), "version None"),
        (lambda values: values.pop("outputs"), "expected the keys"),
        (lambda values: values.pop("source"), "expected the keys"),
        (changed(extra=1), "expected the keys"),
        (changed(outputs=[1.0]), "expected the keys"),
        (changed(vovnet=1), "expected the keys"),
        (changed(source="a.pth"), "expected the keys"),
        (changed(source={"file": "a.pth"}), "expected the keys"),
        (lambda values: values["source"].update(license=None), "expected the keys"),
        (lambda values: values["source"].update(url="https://example.org"), "expected the keys"),
    ],
)
def test_wrong_manifests_are_refused(change: Callable[[dict[str, Any]], Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    write_manifest(path, Manifest("1.2", SOURCE, {}))
    read_manifest(tmp_path)
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    message = refused(read_manifest, tmp_path)
    assert str(path) in message
    assert says in message


@pytest.mark.parametrize("text", ["", "{", "[1]", '"text"', "\x00", '{"a":' * 100_000])
def test_manifests_that_are_no_json_object(text: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(text)
    assert "manifest.json" in refused(read_manifest, tmp_path)


@pytest.mark.parametrize(
    "file",
    [
        *("/home/somebody/a.pth", "../a.pth", "C:\\Users\\me\\a.pth", "secret/a.pth", "secret/a@main"),
        *(f"/home/a@{'0' * 40}", f"a/b/c@{'0' * 40}", f"../a@{'0' * 40}", f"a\\b@{'0' * 40}", f"a/b@/{'0' * 40}"),
    ],
)
def test_a_manifest_names_no_place_on_somebodys_machine(file: str, tmp_path: Path) -> None:
    """It is published, and its text goes into the card."""
    write_manifest(tmp_path / "manifest.json", Manifest("1.2", PublishedFile(file, *["x"] * 4), {}))
    assert "manifest.json" in refused(read_manifest, tmp_path)


def test_sums_are_written_for_files_of_several_folders(tmp_path: Path) -> None:
    """The staged card and configuration, and the weights where they are."""
    (tmp_path / "a").mkdir()
    for name in ("README.md", "a/config.json"):
        (tmp_path / name).write_text(name)
    write_sums(tmp_path / "SHA256SUMS", [tmp_path / "README.md", tmp_path / "a" / "config.json"])
    assert (tmp_path / "SHA256SUMS").read_text() == "".join(
        f"{hashlib.sha256(name.encode()).hexdigest()}  {Path(name).name}\n" for name in ("README.md", "a/config.json")
    )
