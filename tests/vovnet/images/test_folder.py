"""Names cannot leave the folder of images; links are followed; names are found in every spelling."""

import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vovnet.errors import InputError
from vovnet.images.folder import ImageFolder, OutsideRoot, list_images, resolve_inside


def test_list_images(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", ".hidden.png", "e.jfif"):
        (tmp_path / name).touch()
    said: list[str] = []
    assert list_images(tmp_path, said.append) == [tmp_path / "a.png", tmp_path / "b.JPG", tmp_path / "e.jfif"]
    assert not said
    for name in ("c.txt", "f.svg", "g", "h.eps"):
        (tmp_path / name).touch()
    (tmp_path / "d.png").mkdir()
    assert len(list_images(tmp_path, said.append)) == 3
    assert said == [f"{tmp_path}: skipped 4 other files (c.txt, f.svg, g and 1 more) and 1 folder (d.png)"]
    with pytest.raises(InputError, match="no images"):
        list_images(tmp_path / "d.png")
    (tmp_path / "d.png" / "a.txt").touch()
    with pytest.raises(InputError, match=r"no images.*a\.txt"):
        list_images(tmp_path / "d.png")
    for wrong in (tmp_path / "none", tmp_path / "c.txt"):
        with pytest.raises(InputError, match="cannot be listed"):
            list_images(wrong)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    inside, outside = tmp_path / "root", tmp_path / "outside"
    (inside / "sub").mkdir(parents=True)
    outside.mkdir()
    for file in (inside / "a.png", inside / "sub" / "b.png", outside / "c.png"):
        file.touch()
    os.symlink(outside / "c.png", inside / "out.png")
    os.symlink(outside, inside / "away")
    os.symlink(inside / "a.png", inside / "in.png")
    os.symlink(inside / "nowhere.png", inside / "dangling.png")
    os.symlink(inside / "loop.png", inside / "loop.png")
    os.symlink(inside, inside / "again")
    os.mkfifo(inside / "pipe.png")
    return inside


CLIMBING = ["../outside/c.png", "/etc/passwd", "sub/../../x", "a\0b", "sub/..", "..", "away/../c.png", "\udcff.png"]
WINDOWS = [
    "..\\outside\\c.png",
    "sub\\..\\a.png",
    "C:\\a.png",
    "c:/a.png",
    "\\\\server\\share\\a.png",
    "\\a.png",
    "..\\",
]


@pytest.mark.parametrize("name", [*CLIMBING, *WINDOWS, "//server/share/a.png", "\\\\?\\C:\\a.png"])
def test_names_cannot_leave_the_root(root: Path, name: str) -> None:
    with pytest.raises(OutsideRoot):
        resolve_inside(root, name)
    with pytest.raises(OutsideRoot):
        ImageFolder(root).find(name)


@given(st.text(alphabet="a./\\:C \0", max_size=12))
def test_what_is_found_is_below_the_root(name: str) -> None:
    try:
        path = resolve_inside("/root-of-images", name)
    except OutsideRoot:
        return
    assert path.is_relative_to("/root-of-images")
    assert ".." not in path.parts


def test_names_inside_are_found(root: Path) -> None:
    folder = ImageFolder(root)
    for name in ("a.png", "./a.png", "sub/b.png", "in.png", "sub//b.png", "out.png", "away/c.png", "again/again/a.png"):
        path = folder.find(name)
        assert path is not None
        assert Path(path).is_file()
        assert resolve_inside(root, name) == Path(path)
    for name in ("none.png", "sub/none.png", "no/none.png", "sub", "", ".", "a.png/x", "away", "a.png\\x"):
        assert folder.find(name) is None
    for name in ("dangling.png", "loop.png", "pipe.png", "loop.png/a.png"):
        assert folder.find(name) is None
    assert resolve_inside(root, "none.png") == root / "none.png"


def test_backslashes_of_windows(root: Path) -> None:
    (root / "odd\\name.png").touch()
    folder = ImageFolder(root)
    assert folder.find("odd\\name.png") == str(root / "odd\\name.png")  # as given first
    assert folder.find("sub\\b.png") == str(root / "sub" / "b.png")
    assert folder.find("again\\sub/b.png") == str(root / "again" / "sub" / "b.png")
    assert folder.find(".\\a.png") == str(root / "a.png")
    assert folder.find("a:b.png") is None


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("separator", ["/", "\\"])
def test_both_forms_of_unicode(tmp_path: Path, form: str, separator: str) -> None:
    stored = tmp_path / unicodedata.normalize(form, "Fotös") / unicodedata.normalize(form, "Ünï 가.png")
    stored.parent.mkdir()
    stored.touch()
    folder = ImageFolder(tmp_path)
    for asked in ("NFC", "NFD"):
        found = folder.find(unicodedata.normalize(asked, f"Fotös{separator}Ünï 가.png"))
        assert found is not None
        assert Path(found).samefile(stored)


def test_the_spelling_that_was_asked_for_comes_first(tmp_path: Path) -> None:
    names = [unicodedata.normalize(form, "ü.png") for form in ("NFC", "NFD")]
    for name in names:
        (tmp_path / name).touch()
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this file system takes both spellings for one name")
    assert [ImageFolder(tmp_path).find(name) for name in names] == [str(tmp_path / name) for name in names]


def test_a_root_that_is_a_link(root: Path, tmp_path: Path) -> None:
    os.symlink(root, tmp_path / "link")
    assert ImageFolder(tmp_path / "link").find("a.png") == str(root / "a.png")


def test_a_root_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    os.symlink(tmp_path / "loop", tmp_path / "loop")
    for wrong, words in (("none", "no such folder"), ("file", "not a folder"), ("loop", "no such folder")):
        with pytest.raises(InputError, match=words):
            ImageFolder(tmp_path / wrong)
