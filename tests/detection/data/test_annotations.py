"""The text of an annotation file: its encodings, gzip within a limit, and what is refused as a whole."""

import gzip
import json
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest

from vovnet.detection.data import annotations
from vovnet.detection.data.annotations import read_annotations
from vovnet.errors import InputError

GOOD: dict[str, Any] = {"images": [{"é": 1}], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
TEXT = json.dumps(GOOD, ensure_ascii=False)


@pytest.mark.parametrize(
    "text",
    [TEXT.encode(encoding) for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32")],
    ids=range(6),
)
@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a"])
def test_encodings_and_gzip(tmp_path: Path, text: bytes, name: str) -> None:
    """What a file contains counts, not its suffix."""
    for data in (text, gzip.compress(text), gzip.compress(text[:5]) + gzip.compress(text[5:])):
        (tmp_path / name).write_bytes(data)
        assert read_annotations(tmp_path / name).images == GOOD["images"]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (gzip.compress(TEXT.encode())[:-9], "damaged"),
        (gzip.compress(TEXT.encode())[:15] + b"zzzz" + gzip.compress(TEXT.encode())[19:], "damaged"),
        (gzip.compress(b"{"), "not valid JSON"),
        (b"\x1f\x8b", "damaged"),
        (b"PK\x03\x04rest", "ZIP"),
        ("é".encode("latin-1") * 9, "not valid JSON"),
        (b"\x00", "not valid JSON"),
        (b"\xef\xbb\xbf", "not valid JSON"),
    ],
    ids=range(8),
)
def test_damaged_files(tmp_path: Path, data: bytes, words: str) -> None:
    (tmp_path / "a.json.gz").write_bytes(data)
    with pytest.raises(InputError, match=words) as caught:
        read_annotations(tmp_path / "a.json.gz")
    assert str(tmp_path / "a.json.gz") in str(caught.value)


def test_a_gzip_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotations, "GZIP_FLOOR", 2**16)
    packer = zlib.compressobj(wbits=31)
    bomb = b"".join(packer.compress(b" " * 2**20) for _ in range(50)) + packer.flush()
    (tmp_path / "bomb.json.gz").write_bytes(bomb)
    tracemalloc.start()
    with pytest.raises(InputError, match="unpacks to more than"):
        read_annotations(tmp_path / "bomb.json.gz")
    assert tracemalloc.get_traced_memory()[1] < 2**22 + annotations.GZIP_RATIO * len(bomb) < 50 * 2**20
    tracemalloc.stop()
    monkeypatch.setattr(annotations, "GZIP_CEILING", 100)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(TEXT.encode() + b" " * 100))
    with pytest.raises(InputError, match="unpacks to more than"):
        read_annotations(tmp_path / "a.json.gz")


def test_the_limit_is_above_honest_files(tmp_path: Path) -> None:
    repeated = json.dumps({**GOOD, "annotations": [{"id": 1, "bbox": [1, 2, 3, 4]}] * 5000})
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(repeated.encode()))
    assert len(read_annotations(tmp_path / "a.json.gz").annotations) == 5000


@pytest.mark.parametrize(
    ("segmentation", "expected"),
    [(None, False), ([], False), ({}, False), ([[1]], True), ("text", True), ("", True), (0, True), (False, True)],
)
def test_a_segmentation_that_is_something_else_counts_as_one(segmentation: Any, expected: bool) -> None:
    assert annotations.has_segmentation({"segmentation": segmentation}) is expected
    assert not annotations.has_segmentation({})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[]", "got a list"),
        ("3", "got a number"),
        ('{"images": []}', "images"),
        (json.dumps({**GOOD, "images": []}), "empty dataset"),
        (json.dumps({**GOOD, "images": {}}), "'images' must be a list, got an object"),
        (json.dumps({**GOOD, "categories": []}), "'categories' is an empty list"),
        (json.dumps({**GOOD, "categories": ["a"]}), r"categories\[0\]"),
        (json.dumps({**GOOD, "categories": [{"id": "1", "name": "a"}]}), r"categories\[0\]"),
        (json.dumps({**GOOD, "categories": [{"id": 1}]}), r"categories\[0\]"),
        (json.dumps({**GOOD, "categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}), "both 'a' and 'b'"),
        ('{"images": [1], "categories": [1]}', "'annotations' is missing"),
    ],
)
def test_files_that_are_not_coco_json(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InputError, match=words) as caught:
        read_annotations(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    for wrong in (tmp_path / "none.json", tmp_path, tmp_path / "latin.json"):
        with pytest.raises(InputError) as caught:
            read_annotations(wrong)
        assert str(wrong) in str(caught.value)
    (tmp_path / "bom.json").write_text(json.dumps(GOOD), encoding="utf-8-sig")
    assert read_annotations(tmp_path / "bom.json").images == GOOD["images"]
