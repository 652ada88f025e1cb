"""Names for the files of predictions: distinct, and held by the file system."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vovnet.results import names as module
from vovnet.results.names import _is_held, distinct, output_names


def named(folder, *files):
    return output_names([Path(file) for file in files], folder)


def test_stems_stay_and_equal_ones_get_numbers(tmp_path):
    assert named(tmp_path, "x/a.png", "a-2.png", "y/a.jpg", "z/a.jpg", "b.png") == ["a", "a-2", "a-3", "a-4", "b"]
    strange = ["a b", "汽车", "con", "-x", "é", "a:b", "\udcff", "A", "a", ".png", "stop\nsign", "x" * 250]
    assert named(tmp_path, *(f"{name}.jpg" for name in strange)) == strange
    assert list(tmp_path.iterdir()) == []


def test_a_stem_that_is_too_long_is_shortened_and_stays_distinct(tmp_path):
    long = ["x" * 251, "x" * 255, "汽" * 85, "x" * 251]
    found = named(tmp_path, *long, "y" * 250, "y" * 250)
    assert len(set(found)) == 6
    assert found[4] == "y" * 250
    for name in found:
        (tmp_path / f"{name}.json").write_text("held")


def test_names_that_the_file_system_refuses_are_replaced(tmp_path, monkeypatch):
    real = os.open

    def windows_share(path, *args, **kwargs):
        if ":" in os.fspath(path) or "\udcff" in os.fspath(path):
            raise OSError(errno.EILSEQ, "illegal byte sequence")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", windows_share)
    one, two, three = named(tmp_path, "a:b.png", "a_b.png", "\udcff.png")
    assert one.startswith("a_b-")
    assert two == "a_b"
    assert three.isascii()


@pytest.mark.parametrize("stem", ["con", "COM1", "nul.x", "a:b", "dot.", "space ", 'q"', "a\nb:c"])
def test_names_that_windows_keeps_for_itself(tmp_path, stem):
    assert _is_held(tmp_path, stem, windows=False)
    assert not _is_held(tmp_path, stem, windows=True)


def test_case_counts_only_where_the_file_system_tells_it(tmp_path, monkeypatch):
    assert named(tmp_path, "A.png", "a.png") == ["A", "a"]
    monkeypatch.setattr(module, "_ignores_case", lambda folder: True)
    assert named(tmp_path, "A.png", "a.png", "e\u0301.png", "é.png") == ["A", "a-2", "e\u0301", "é-2"]


@given(st.lists(st.sampled_from(["a", "A", "a-2", "a-3", "b"]) | st.text(max_size=3), max_size=12))
def test_names_are_distinct(stems):
    for key in (str, str.casefold):
        found = distinct(stems, key)
        assert len({key(name) for name in found}) == len(stems)
        assert all(name.startswith(stem) for name, stem in zip(found, stems, strict=True))
