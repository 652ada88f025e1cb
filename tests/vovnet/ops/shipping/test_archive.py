"""Wheels are written so that pip installs them, and read back."""

from __future__ import annotations

import base64
import csv
import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from vovnet.ops.shipping.archive import read_wheel, write_wheel

FILES = {
    "made/__init__.py": b"number = 7\n",
    "made/deep/library.so": b"\x7fELF",
    "made-1.0.dist-info/METADATA": b"Metadata-Version: 2.4\nName: made\nVersion: 1.0\n",
    "made-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
}


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "made-1.0-py3-none-any.whl"
    write_wheel(path, FILES)
    return path


def test_what_is_written_is_read(wheel):
    assert read_wheel(wheel) == FILES


def test_the_record_has_every_file(wheel):
    with zipfile.ZipFile(wheel) as archive:
        assert archive.namelist()[-1] == "made-1.0.dist-info/RECORD"
        rows = list(csv.reader(archive.read("made-1.0.dist-info/RECORD").decode().splitlines()))
    assert rows[-1] == ["made-1.0.dist-info/RECORD", "", ""]
    expected = {}
    for name, content in FILES.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        expected[name] = [f"sha256={digest}", str(len(content))]
    assert {name: rest for name, *rest in rows[:-1]} == expected


def test_equal_contents_make_equal_files(wheel, tmp_path):
    again = tmp_path / "again.whl"
    write_wheel(again, dict(reversed(FILES.items())))
    assert again.read_bytes() == wheel.read_bytes()


def test_pip_installs_it(wheel, tmp_path):
    target = tmp_path / "target"
    options = ["--no-index", "--no-deps", "--disable-pip-version-check", "--target", str(target)]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, str(wheel)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (target / "made" / "__init__.py").read_bytes() == FILES["made/__init__.py"]
    assert (target / "made" / "deep" / "library.so").stat().st_mode & 0o111


def test_a_failure_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_wheel(tmp_path / "made.whl", {**FILES, "made/broken.py": None})
    assert list(tmp_path.iterdir()) == []
