"""A missing image is shown as the path that was looked for, with the file that was meant."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vovnet.detection.data.missing import looked_for


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("missing")
    (base / "outside.png").touch()
    for name in (
        "Top.jpg",
        "0007.png",
        "train/a.JPG",
        "train/deep/b.png",
        "val/c.png",
        "kitten_photo.png",
        "x.d/y.png",
    ):
        (base / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (base / "images" / name).touch()
    return base / "images"


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("top.jpg", "Top.jpg"),  # another case
        ("TOP.JPG", "Top.jpg"),
        ("Top.png", "Top.jpg"),  # another suffix
        ("Top", "Top.jpg"),
        ("train/a.png", "train/a.JPG"),
        ("Train/A.jpg", "train/a.JPG"),
        ("images/train/a.JPG", "train/a.JPG"),  # a folder too many
        ("data\\images\\Top.jpg", "Top.jpg"),
        ("train/Top.jpg", "Top.jpg"),
        ("c.png", "val/c.png"),  # a folder too few
        ("deep/b.png", "train/deep/b.png"),
        ("train/c.png", "val/c.png"),
        ("/data/photos/c.png", "val/c.png"),  # absolute names are refused, but the file may be here
        ("../Top.jpg", "Top.jpg"),
        ("7.png", "0007.png"),
        ("kitten_fhoto.png", "kitten_photo.png"),
    ],
)
def test_near_files(root: Path, name: str, near: str) -> None:
    text = looked_for(root, name)
    assert text.startswith(os.path.join(root, name))
    assert f"did you mean '{near}'?" in text


@pytest.mark.parametrize(
    "name", ["0008.png", "other.png", "train", "../outside.png", "..", "", "\0", "a\n\ud800", "x.d"]
)
def test_nothing_near(root: Path, name: str) -> None:
    text = looked_for(root, name)
    assert "did you mean" not in text
    assert "\n" not in text


@given(st.text(alphabet=st.sampled_from("aTop./\\ train0.7png\0\ud800*"), max_size=30))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_name(root: Path, name: str) -> None:
    text = looked_for(root, name)
    if "did you mean '" in text:
        near = text.rpartition("did you mean '")[2].removesuffix("'?)")
        assert (root / near).is_file()


def test_a_root_that_is_missing_or_huge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "did you mean" not in looked_for(tmp_path / "none", "a.png")
    monkeypatch.setattr("vovnet.detection.data.missing._MOST_NAMES", 1)
    for name in ("kitten.png", "b.png"):
        (tmp_path / name).touch()
    assert "did you mean" not in looked_for(tmp_path, "kittens.png")
