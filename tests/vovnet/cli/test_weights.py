"""``vovnet weights`` and ``vovnet weights check`` as a user types them."""

from __future__ import annotations

import dataclasses
import json
import re
import socket

import pytest
from local_hub import Hub
from support import command

from vovnet.detection.zoo import sources as module
from vovnet.detection.zoo.sources import Source, published_sources, select


def names(text: str) -> list[str]:
    return re.findall(r"^(\S+)$", text, re.MULTILINE)


def test_the_list_opens_no_socket(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a socket was asked for")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    outcome = command("weights")
    assert outcome.code == 0, outcome.err
    assert set(names(outcome.out)) >= {source.name for source in published_sources()}
    assert command("weights", "list").out == outcome.out


def test_names_and_patterns(hub: Hub) -> None:
    assert "vovnet57" not in command("weights", "vovnet39").out
    assert "vovnet39.in1k" in command("weights", "vovnet39").out
    found = json.loads(command("weights", "torchvision:*", "--json").out)
    assert found
    assert all(one["publisher"] == "torchvision" for one in found)
    assert json.loads(command("weights", "--json", "vovnet39.in1k").out)[0]["name"] == "vovnet39.in1k"
    command("weights", "vovnet93").refused("'vovnet93'", "did you mean", "vovnet39")
    command("weights", "check", "vovnet93").refused("'vovnet93'")
    command("weights", "check", "vovnet39", "--timeout", 0).refused("timeout")
    command("weights", "vovnet39", "--nonsense").refused("--nonsense")


def test_the_help_names_both_commands() -> None:
    outcome = command("weights", "--help")
    assert outcome.code == 0
    assert "extra detection" in " ".join(outcome.out.split())
    assert "list" in outcome.out
    assert "check" in outcome.out


def test_the_exit_code_says_whether_all_answer(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in Hub serves the file of one source, and knows nothing of another."""

    def moved(name: str, url: str) -> Source:
        (source,) = select(published_sources(), [name])
        return dataclasses.replace(source, url=url, download=None)

    alive = moved("vovnet39.in1k", hub.put_file("a.pth", b"weights"))
    dead = moved("vovnet57.in1k", f"{hub.endpoint}/absent.pth")
    monkeypatch.setattr(module, "published_sources", lambda: (alive, dead))
    outcome = command("weights", "check", "vovnet39")
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == "vovnet39.in1k: answers, 0.0 MB\n"
    outcome = command("weights", "check")
    assert (outcome.code, outcome.err) == (1, "")
    assert [line.partition(":")[0] for line in outcome.out.splitlines()] == ["vovnet39.in1k", "vovnet57.in1k"]
    assert "does not answer (HTTP 404" in outcome.out
    assert {request.method for request in hub.log()} == {"HEAD"}


@pytest.mark.parametrize("name", ["maskrcnn_vovnet57_fpn", "maskrcnn_vovnet57_fpn.COCO_V1", "MaskRCNN_VoVNet57*"])
def test_who_names_weights_without_a_file_is_told_so(hub: Hub, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    outcome = command("weights", "check", name)
    assert (outcome.code, outcome.err) == (1, "")
    assert outcome.out == "maskrcnn_vovnet57_fpn.COCO_V1: no file is published\n"
    (absent,) = select(published_sources(), [name])
    monkeypatch.setattr(module, "published_sources", lambda: (absent,))
    everything = command("weights", "check")
    assert (everything.code, everything.out, everything.err) == (0, "", "")
    assert hub.log() == []
