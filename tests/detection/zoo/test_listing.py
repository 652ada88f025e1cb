"""The table of sources in a terminal, for programs, and in the docs."""

from __future__ import annotations

import dataclasses
import json

import pytest
from local_hub import Hub

from vovnet.detection.zoo.listing import as_json, as_markdown, as_text, megabytes
from vovnet.detection.zoo.sources import Group, Source, published_sources

GROUP = Group("Weights", ("load NAME", "open(NETWORK)"), "this", "that")
ONE = Source(
    "one", "net", GROUP, "somebody", "mit", url="https://e.org/one.pth", published={"box AP": 41.0}, checksum="SHA-1 ab"
)


@pytest.mark.usefixtures("hub")
def test_a_terminal_of_80_columns_shows_every_fact() -> None:
    text = as_text(published_sources())
    words = " ".join(text.split())
    for line in text.splitlines():
        assert len(line) <= 80 or line.strip().startswith("https://"), line
    for source in published_sources():
        for fact in (source.name, source.place, source.checksum or "", source.numbers, source.licence_text):
            assert fact in words
    for group in {source.group for source in published_sources()}:
        assert text.count(f"\n{group.title}\n") + text.startswith(group.title) == 1


def test_a_file_in_the_cache_is_shown_with_its_place_and_size(
    monkeypatch: pytest.MonkeyPatch, hub: Hub, tmp_path
) -> None:
    assert "size unknown, not in the cache" in as_text([ONE])
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "one.pth").write_bytes(b"\0" * 1_200_000)
    assert f"1.2 MB, in the cache: {folder / 'one.pth'}" in as_text([ONE])
    assert json.loads(as_json([ONE]))[0]["cached"] == str(folder / "one.pth")


def test_programs_get_every_field() -> None:
    (found,) = json.loads(as_json([ONE]))
    assert found["published"] == {"data": "ImageNet-1k", "percent": {"box AP": 41.0}}
    assert found["load"] == ["load one", "open(net)"]
    assert (found["license"], found["checksum"], found["size"]) == ("mit", "SHA-1 ab", None)
    (absent,) = json.loads(as_json([dataclasses.replace(ONE, url=None)]))
    assert absent["load"] == []
    assert absent["url"] is None
    assert len(json.loads(as_json(published_sources()))) == len(published_sources())


def test_names_from_outside_stay_on_their_line() -> None:
    hostile = dataclasses.replace(ONE, name="a\nb\x1b[31m", publisher="x\ty")
    assert "\x1b" not in as_text([hostile])


def test_the_docs_have_a_row_each() -> None:
    rows = [line for line in as_markdown([ONE, dataclasses.replace(ONE, name="two", url=None)]).splitlines() if line]
    assert (
        rows[2]
        == "| `one` | box AP 41.0 % (ImageNet-1k), somebody | mit | – | [one.pth](https://e.org/one.pth), SHA-1 ab |"
    )
    assert "no file is published" in rows[3]
    assert rows[4].startswith("- **Weights.** To load one: `load NAME` or `open(NETWORK)`.")
    assert len(rows) == 5


def test_sizes() -> None:
    assert [megabytes(size) for size in (0, 90_483_160, 10**10)] == ["0.0 MB", "90.5 MB", "10,000.0 MB"]
