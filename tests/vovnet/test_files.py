"""Files that are whole or absent."""

import json
import os

import pytest

from vovnet.files import atomic_path, write_json, write_text


def test_writes_and_creates_folders(tmp_path):
    path = tmp_path / "a" / "b" / "x.json"
    write_json(path, {"ü": [1, 2.5]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"ü": [1, 2.5]}
    write_text(path, "new")
    assert path.read_text() == "new"
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["x.json"]


def test_the_suffix_is_kept_for_the_writer(tmp_path):
    with atomic_path(tmp_path / "figure.png") as temporary:
        assert temporary.suffix == ".png"
        assert temporary.parent == tmp_path
        temporary.touch()


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, OSError])
def test_an_error_leaves_the_old_file_and_no_rubbish(tmp_path, error):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def interrupted():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        interrupted()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x.txt"]


def test_not_a_number_never_reaches_a_file(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "x.json", float("nan"))
    assert os.listdir(tmp_path) == []


def test_a_system_error_names_the_file(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="file"):
        write_text(tmp_path / "file" / "x.txt", "text")
    (tmp_path / "folder").mkdir()
    with pytest.raises(IsADirectoryError) as caught:
        write_text(tmp_path / "folder", "text")
    assert caught.value.filename == str(tmp_path / "folder")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_a_full_disk_names_the_file(tmp_path):
    def write():
        with atomic_path(tmp_path / "x.txt"), open("/dev/full", "w") as file:
            file.write("text")

    with pytest.raises(OSError, match=r"No space left on device.*x\.txt"):
        write()
