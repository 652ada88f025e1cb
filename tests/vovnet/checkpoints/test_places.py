"""A path is a path first: a name that looks like one never reaches the network, whoever is given it."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hostile import refused
from hypothesis import HealthCheck, example, given, settings
from local_hub import Hub
from support import command
from torch import nn

from vovnet.checkpoints.places import is_path, local_folder, locate, model_folder
from vovnet.classification import is_classifier, load_classifier
from vovnet.detection.checkpoints.initialize import load_matching
from vovnet.errors import InputError
from vovnet.hub import convert_checkpoint, load_detector, publish, verify

ENDINGS = (".pth", ".pt", ".zip", ".safetensors", ".json", ".onnx", ".xml", ".pt2", ".PTH", ".Zip", ".SafeTensors")
PATHS = (
    *("runs/nope", "runs/nope@v1", "a/b/c", "a/b/c@main", "./x", "../x", "/no/such", "~/nope", "~nobody/x", "owner/"),
    *(f"owner/name{ending}" for ending in ENDINGS),
    *(f"name{ending}" for ending in ENDINGS),
    *(r"runs\nope", r"C:\runs\nope", r".\x", r"\\server\share", "local-dir:owner/name", "local-dir:nope"),
)

Entrance = Callable[[str], object]
ENTRANCES: dict[str, Entrance] = {
    "load_detector": load_detector,
    "load_classifier": load_classifier,
    "is_classifier": is_classifier,
    "init": lambda name: load_matching(nn.Module(), name),
    "verify": verify,
    "publish": lambda name: publish(name, "org/new", yes=True),
}


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with ``runs/mine``, whose home folder is empty."""
    folder = tmp_path / "work"
    (folder / "runs" / "mine").mkdir(parents=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    return folder


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Nothing may ask for an address or connect; whoever tries fails, and is listed even if the error is swallowed."""
    tried: list[str] = []

    def refuse(*arguments: Any, **options: Any) -> None:
        tried.append(str(arguments[-1]))
        raise AssertionError(f"a socket was asked for {arguments[-1]}")

    for owner, name in ((socket.socket, "connect"), (socket.socket, "connect_ex"), (socket, "getaddrinfo")):
        monkeypatch.setattr(owner, name, refuse)
    yield tried
    assert tried == []


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_a_path_that_is_absent_ends_at_every_entrance_without_a_socket(entrance: str, no_sockets: list[str]) -> None:
    for name in PATHS:
        refused(lambda name=name: ENTRANCES[entrance](name), "no folder", name.removeprefix("local-dir:"))  # type: ignore[misc]


def test_convert_takes_files_too_and_ends_at_an_absent_path_without_a_socket(no_sockets: list[str]) -> None:
    for name in PATHS:
        folder = name.removeprefix("local-dir:")
        said = () if folder == name else ("no folder",)
        refused(lambda name=name: convert_checkpoint(name, "out"), Path(folder).name, *said)  # type: ignore[misc]
    assert not Path("out").exists()


def test_the_command_ends_in_one_line(no_sockets: list[str], tmp_path: Path) -> None:
    where = ("--images", tmp_path, "--annotations", tmp_path / "a.json", "--output", tmp_path / "out")
    for arguments in (
        ("predict", "a.png", "--weights", "runs/nope", "--output", tmp_path / "out"),
        ("evaluate", "--weights", "runs/nope", *where),
        ("verify", "runs/nope"),
        ("publish", "runs/nope", "org/new"),
    ):
        command(*arguments).refused("no folder 'runs/nope' here")


def test_a_repository_with_the_name_of_a_folder_is_reached_by_its_prefix(hub: Hub, workplace: Path) -> None:
    hub.create("runs/nope", {"config.json": b"{}", "model.safetensors": b""})
    refused(lambda: locate("runs/nope"), "hf-hub:runs/nope")
    assert hub.log() == []
    for name in ("hf-hub:runs/nope", "hf-hub:runs/nope@main"):
        assert (model_folder(name, ["config.json"]) / "config.json").read_bytes() == b"{}"
        for entrance in ("load_detector", "load_classifier", "init", "verify"):
            hub.reset()
            refused(lambda e=entrance, n=name: ENTRANCES[e](n), "runs/nope")  # type: ignore[misc]
            assert hub.log() != [], entrance
            hub.create("runs/nope", {"config.json": b"{}", "model.safetensors": b""})


def test_what_is_a_repository_and_what_a_folder(workplace: Path) -> None:
    assert locate("owner/name") == "owner/name"
    assert locate("owner/name@v1") == "owner/name@v1"
    assert locate("owner/name@refs/pr/1") == "owner/name@refs/pr/1"
    assert locate("hf-hub:owner/name.pth") == "owner/name.pth"
    for given_name in ("runs/mine", "./runs/mine", "runs/mine/", "~/runs/mine", "local-dir:runs/mine"):
        assert Path(locate(given_name)).resolve() == workplace / "runs" / "mine"
    assert local_folder("local-dir:runs/mine") == Path("runs/mine")
    refused(lambda: locate(Path("owner/name")), "no folder", "hf-hub:owner/name")  # a Path is never a name
    refused(lambda: local_folder("owner/name"), "no folder 'owner/name'")
    refused(lambda: local_folder("hf-hub:owner/name"), "hf-hub:owner/name")


def test_a_folder_has_no_revision(no_sockets: list[str]) -> None:
    refused(lambda: locate("runs/mine@v1"), "runs/mine", "revision 'v1'", "local path")
    refused(lambda: model_folder("runs/mine", [], "v1"), "runs/mine", "revision 'v1'", "local path")
    refused(lambda: model_folder("runs/nope", [], "v1"), "no folder 'runs/nope'")


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:owner", "hf-hub:a/b/c", "hf-hub:../x", "local-dir:", "", "owner"])
def test_what_is_neither(name: str, no_sockets: list[str]) -> None:
    refused(lambda: locate(name), f"'{name}'")


def test_similar_names_are_suggested() -> None:
    refused(lambda: locate("runs/mien"), "did you mean 'runs/mine'?")
    refused(lambda: locate("./rums/mine/best"), "did you mean 'runs'?")
    assert "did you mean" not in refused(lambda: locate("runs/0000000"))


@pytest.mark.parametrize("name", ["model.pth", "runs/model.PT", "runs/mine/model.pth.zip"])
def test_a_file_for_a_folder(name: str, no_sockets: list[str]) -> None:
    Path(name).write_bytes(b"")
    for entrance in ENTRANCES.values():
        refused(lambda e=entrance: e(name), "is a file", name, f"vovnet convert '{name}'")  # type: ignore[misc]


def test_a_file_of_a_folder_names_the_folder() -> None:
    Path("runs/mine/config.json").write_text("{}")
    refused(lambda: locate("runs/mine/config.json"), "is a file", "'runs/mine'")
    os.symlink("absent", "runs/link")
    refused(lambda: locate("runs/link"), "leads nowhere")


NAMES = st.text(st.sampled_from("ab.-_/\\~@: é\x00\n\ud800"), max_size=12) | st.text(max_size=300)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(start=st.sampled_from(["", "runs/", "hf-hub:", "local-dir:", "~", "owner/"]), rest=NAMES)
@example(start="", rest="a" * 5000)
@example(start="runs/", rest="a" * 5000)
@example(start="~\x00", rest="")
def test_any_text_is_a_folder_a_repository_or_one_line(start: str, rest: str, no_sockets: list[str]) -> None:
    text = start + rest
    try:
        place: Path | str | InputError = locate(text)
    except InputError as error:
        place = error
    if isinstance(place, InputError):
        assert "\n" not in str(place)
    elif isinstance(place, Path):
        assert place.is_dir()
    else:
        assert place == text.removeprefix("hf-hub:")
        name = place.partition("@")[0]
        assert name.count("/") == 1
        if not text.startswith("hf-hub:"):
            assert not is_path(text)
            assert not os.path.isdir(name.partition("/")[0])
            assert not name.lower().endswith(ENDINGS)


@pytest.mark.parametrize("suffix", [".onnx", ".xml", ".pt2", ".torchscript"])
def test_an_exported_file_for_a_folder(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"model{suffix}"
    file.write_bytes(b"")
    with pytest.raises(InputError, match="vovnet predict") as caught:
        locate(file)
    assert str(file) in str(caught.value)
