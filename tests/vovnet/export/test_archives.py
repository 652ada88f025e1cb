"""Archives with damaged parts are one line, whatever zipfile makes of them."""

from __future__ import annotations

import contextlib
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vovnet.errors import InputError
from vovnet.export.archives import is_torchscript, stored_text

TEXT = "what the file says about itself " * 20


def archive(path: Path) -> bytes:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as written:
        written.writestr("model/extra/vovnet", TEXT)
    return path.read_bytes()


def test_the_text_is_found(tmp_path: Path) -> None:
    archive(tmp_path / "m.pt2")
    assert stored_text(tmp_path / "m.pt2") == TEXT
    assert not is_torchscript(tmp_path / "m.pt2")


@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_damage_is_one_line(tmp_path_factory: pytest.TempPathFactory, position: int, value: int) -> None:
    path = tmp_path_factory.mktemp("damaged") / "m.pt2"
    content = bytearray(archive(path))
    content[position % len(content)] = value
    path.write_bytes(content)
    is_torchscript(path)
    with contextlib.suppress(InputError):  # any other error is a traceback for the user
        assert stored_text(path) in (TEXT, None)


def test_a_damaged_stream_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "m.pt2"
    content = bytearray(archive(path))
    start = content.index(b"model/extra/vovnet") + len(b"model/extra/vovnet")
    content[start : start + 4] = b"\xff" * 4
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"m\.pt2"):
        stored_text(path)
