"""Archives with one checkpoint: the file comes whole, or the archive is refused, within bounds."""

from pathlib import Path

import pytest
import torch
from hostile import refused
from zips import HOSTILE, hostile_archives, zipped

from vovnet.checkpoints.archives import is_archive, member_blocks, sha1_of_checkpoint
from vovnet.checkpoints.pickled import read_checkpoint_file

NAME = "weights.pth"
CONTENT = bytes(torch.randint(256, (300_000,), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy())


def read(path: Path, most: int = len(CONTENT)) -> bytes:
    return b"".join(member_blocks(path, name=NAME, most=most))


@pytest.fixture(scope="module")
def archives() -> dict[str, bytes]:
    return hostile_archives(NAME, CONTENT)


@pytest.mark.parametrize("compression", [0, 8], ids=["stored", "deflated"])
def test_the_only_file_comes_whole(tmp_path: Path, compression: int) -> None:
    path = tmp_path / "weights.pth.zip"
    path.write_bytes(zipped([(NAME, CONTENT)], compression))
    assert is_archive(path)
    assert read(path) == CONTENT
    assert b"".join(member_blocks(path)) == CONTENT
    assert sha1_of_checkpoint(path) != ""
    (tmp_path / NAME).write_bytes(CONTENT)
    assert sha1_of_checkpoint(path) == sha1_of_checkpoint(tmp_path / NAME)


@pytest.mark.parametrize("kind", HOSTILE)
def test_anything_else_is_refused(archives: dict[str, bytes], tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights.pth.zip"
    path.write_bytes(archives[kind])
    come = 0

    def read_all() -> None:
        nonlocal come
        for block in member_blocks(path, name=NAME, most=len(CONTENT)):
            come += len(block)

    refused(read_all, str(path))
    assert come <= len(CONTENT)
    assert [file.name for file in tmp_path.iterdir()] == ["weights.pth.zip"]


@pytest.mark.parametrize("kind", sorted({*HOSTILE} - {"another name", "a bomb"}))
def test_the_rest_is_refused_under_any_name(archives: dict[str, bytes], tmp_path: Path, kind: str) -> None:
    path = tmp_path / "weights.pth.zip"
    path.write_bytes(archives[kind])
    refused(lambda: read_checkpoint_file(path), str(path))


def test_a_file_over_the_limit_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth.zip"
    path.write_bytes(zipped([(NAME, CONTENT)]))
    refused(lambda: next(member_blocks(path, name=NAME, most=len(CONTENT) - 1)), f"{len(CONTENT):,}")


def test_torchs_own_zip_files_are_no_archives(tmp_path: Path) -> None:
    for legacy in (True, False):
        torch.save({"a": torch.ones(3)}, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
        assert not is_archive(tmp_path / "a.pth")
        assert read_checkpoint_file(tmp_path / "a.pth").tensors["a"].tolist() == [1, 1, 1]
    assert not is_archive(tmp_path)
    assert not is_archive(tmp_path / "absent.zip")


def test_a_checkpoint_is_read_from_its_archive(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "a.pth")
    (tmp_path / "a.pth.zip").write_bytes(zipped([("a.pth", (tmp_path / "a.pth").read_bytes())]))
    assert read_checkpoint_file(tmp_path / "a.pth.zip").tensors["a"].tolist() == [1, 1, 1]
