"""Files from the Hub: whole or absent, once, and errors that show the ways out."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from hostile import refused
from huggingface_hub import constants, errors
from local_hub import ALWAYS, Hub
from support import contents

from vovnet.checkpoints.hub import hub_files

BODY = bytes(range(256)) * 4096
NAME = "org/model"
FILES = {"config.json": b'{"a": 1}\n', "model.safetensors": BODY}
WANTED = ("config.json", "model.safetensors")
WAYS_OUT = ("HF_ENDPOINT", "folder", "cache")
"""A mirror, the files in a local folder, and another machine's cache."""


TWO = """
import sys
from pathlib import Path
from vovnet.checkpoints.download import fetch
from vovnet.checkpoints.hub import hub_files
import huggingface_hub, torch

print("ready", flush=True)
sys.stdin.readline()
path = fetch(sys.argv[1], progress=False)
folder = hub_files("org/model", ["config.json", "model.safetensors"])
print(path, folder, sep="\\n")
"""


def test_two_processes_at_once_both_end_well(hub: Hub, repository: Path, tmp_path: Path) -> None:
    url = hub.put_file("weights.pth", BODY)
    commit = hub.create(NAME, FILES)
    both = [
        subprocess.Popen(
            [sys.executable, "-c", TWO, url],
            cwd=repository,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    for process in both:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in both:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    for process in both:
        out, err = process.communicate()
        assert process.returncode == 0, err
        path, folder = map(Path, out.splitlines())
        assert path.read_bytes() == BODY
        assert folder.name == commit
        assert {name: (folder / name).read_bytes() for name in WANTED} == FILES
    assert list(contents(tmp_path / "torch")) == ["hub/checkpoints/weights.pth"]
    assert not [name for name in contents(tmp_path / "hub-cache") if name.endswith(".incomplete")]


# The Hub's.


def read(name: str = NAME, revision: str | None = None) -> dict[str, bytes]:
    folder = hub_files(name, WANTED, revision)
    return {filename: (folder / filename).read_bytes() for filename in WANTED}


def test_only_what_is_asked_for_comes(hub: Hub) -> None:
    commit = hub.create(NAME, {**FILES, "pytorch_model.bin": b"a pickle", "code.py": b"print()", "../up": b"x"})
    folder = hub_files(NAME, WANTED)
    assert folder.name == commit
    assert set(contents(folder)) == set(WANTED)
    assert {request.path.partition("/resolve/")[2].partition("/")[2] for request in hub.log()} == set(WANTED)


def test_revisions(hub: Hub) -> None:
    first = hub.create(NAME, FILES)
    hub.tag(NAME, "v1")
    second = hub.commit(NAME, {"config.json": b"new"})
    third = hub.commit(NAME, {"config.json": b"other"}, branch="wip")
    for revision, commit in (("v1", first), (first, first), ("main", second), (None, second), ("wip", third)):
        assert hub_files(NAME, WANTED, revision).name == commit
        if revision is not None:
            assert hub_files(f"{NAME}@{revision}", WANTED).name == commit
            assert hub_files(f"{NAME}@{revision}", WANTED, revision).name == commit
    assert read(revision="v1") == FILES
    assert read()["config.json"] == b"new"
    refused(lambda: hub_files(f"{NAME}@v1", WANTED, "main"), "'v1'", "'main'", "one of them")


def test_all_files_are_of_one_commit(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    first = hub.create(NAME, FILES)
    download = huggingface_hub.hf_hub_download

    def and_someone_pushes(repository: str, filename: str, **options: object) -> str:
        path = download(repository, filename, **options)  # type: ignore[arg-type]
        hub.commit(NAME, dict.fromkeys(WANTED, b"newer"))
        return path  # type: ignore[return-value]

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", and_someone_pushes)
    folder = hub_files(NAME, WANTED)
    assert hub.head(NAME) != first
    assert folder.name == first
    assert {name: (folder / name).read_bytes() for name in WANTED} == FILES


@pytest.mark.parametrize(
    "name",
    ["", "model", "a/b/c", "../x", "/etc/passwd", "org/", "/model", "org/..", "org/a..b", "org/--x", "@main", "a b/c"],
)
def test_what_is_no_name_reaches_nobody(hub: Hub, name: str) -> None:
    refused(lambda: hub_files(name, WANTED), repr(name).strip("'"))
    assert hub.log() == []


def test_private_and_gated(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.create(NAME, FILES, private=True)
    hub.create("org/gated", FILES, gated=True)
    refused(lambda: hub_files(NAME, WANTED), f"'{NAME}'", "private", "hf auth login", "folder")
    refused(lambda: hub_files("org/gated", WANTED), "'org/gated'", "gated", "terms", "hf auth login", "folder")
    monkeypatch.setenv("HF_TOKEN", "hf_nobody")
    refused(lambda: hub_files(NAME, WANTED), f"'{NAME}'")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert read() == read("org/gated") == FILES


def test_what_is_not_there_is_named(hub: Hub, token: str) -> None:
    hub.create(NAME, {"config.json": b"{}"})
    refused(lambda: hub_files("org/other", WANTED), "'org/other'", "check the name")
    refused(lambda: hub_files("org/other@v9", WANTED), "'org/other'", "revision 'v9'", "check the name")
    refused(lambda: hub_files(NAME, WANTED, "v9"), f"'{NAME}'", "'v9'", "revision")
    refused(lambda: hub_files(f"{NAME}@v9", WANTED), f"'{NAME}'", "'v9'", "revision")
    refused(lambda: hub_files(NAME, WANTED), f"'{NAME}'", "model.safetensors", "HF_ENDPOINT", "folder")


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_few_failures_are_survived(hub: Hub, status: int) -> None:
    hub.create(NAME, FILES)
    hub.fail("resolve/.*safetensors", times=3, status=status, headers={"Retry-After": "0"})
    assert read() == FILES
    assert [request.status for request in hub.log()].count(status) == 3


@pytest.mark.parametrize("status", [429, 500, 503])
def test_lasting_failures_show_the_ways_out(hub: Hub, status: int, tmp_path: Path) -> None:
    hub.create(NAME, FILES)
    hub.fail("safetensors", times=ALWAYS, status=status, headers={"Retry-After": "0"})
    refused(lambda: hub_files(NAME, WANTED), f"'{NAME}'", "model.safetensors", str(status), *WAYS_OUT)
    assert not [name for name in contents(tmp_path) if name.endswith(".incomplete")]


@pytest.mark.usefixtures("impatient")
def test_slow_answers(hub: Hub) -> None:
    hub.create(NAME, FILES)
    hub.slow("resolve", times=2)
    assert read() == FILES
    hub.commit(NAME, {"model.safetensors": b"newer"})
    hub.slow("resolve/[0-9a-f]*/model.safetensors", times=ALWAYS)
    refused(lambda: hub_files(NAME, WANTED), f"'{NAME}'", "model.safetensors", *WAYS_OUT)


def test_a_cut_off_body_is_resumed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # the client keeps whole chunks of what came
    hub.create(NAME, FILES)
    hub.cut("safetensors")
    assert read() == FILES
    assert [request.status for request in hub.log() if request.method == "GET"] == [200, 200, 206]


def test_a_body_that_is_always_cut_off_leaves_no_half_file(hub: Hub, tmp_path: Path) -> None:
    hub.create(NAME, FILES)
    hub.cut("safetensors", times=ALWAYS)
    refused(lambda: hub_files(NAME, WANTED), f"'{NAME}'", "model.safetensors", *WAYS_OUT)
    files = contents(tmp_path / "hub-cache")
    assert not [name for name in files if name.endswith((".incomplete", "model.safetensors"))]
    assert not [body for body in files.values() if body != BODY and body in BODY and len(body) > 100]


def test_a_warm_cache_needs_no_network(hub: Hub, offline: Callable[[], None]) -> None:
    hub.create(NAME, FILES)
    hub.tag(NAME, "v1")
    assert read() == read(revision="v1") == FILES
    hub.down()
    assert read() == read(revision="v1") == read(f"{NAME}@v1") == FILES
    hub.up()
    before = hub.log()
    offline()
    assert read() == read(revision="v1") == FILES
    assert hub.log() == before


@pytest.mark.parametrize("how", ["down", "offline"])
def test_a_cold_cache_shows_the_ways_out(hub: Hub, offline: Callable[[], None], tmp_path: Path, how: str) -> None:
    hub.create(NAME, FILES)
    hub.down() if how == "down" else offline()
    cache = tmp_path / "hub-cache"
    for revision in (None, "v1", "0" * 40):
        message = refused(lambda revision=revision: hub_files(NAME, WANTED, revision), *WAYS_OUT)  # type: ignore[misc]
        assert f"'{NAME}'" in message
        assert "config.json" in message
        assert f"models--org--model into '{cache}'" in message
        assert revision is None or revision in message


def test_a_cache_that_is_copied_is_the_way_out_that_it_is_said_to_be(
    hub: Hub, offline: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.create(NAME, FILES)
    read()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    os.rename(tmp_path / "hub-cache" / "models--org--model", elsewhere / "models--org--model")
    offline()
    refused(read, *WAYS_OUT)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(elsewhere))
    assert read() == FILES


def test_a_cache_that_lacks_the_second_file_names_it(hub: Hub) -> None:
    hub.create(NAME, FILES)
    hub_files(NAME, ["config.json"])
    hub.down()
    refused(read, f"'{NAME}'", "model.safetensors", *WAYS_OUT)


def test_an_error_that_is_nobodys_input_is_not_dressed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> str:
        raise RuntimeError("a defect of ours")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    with pytest.raises(RuntimeError, match="a defect of ours"):
        hub_files(NAME, WANTED)


def test_one_line_whatever_the_client_says(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **options: object) -> str:
        raise errors.LocalEntryNotFoundError("nothing cached\n\nsee https://…")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    refused(read, f"'{NAME}'", "nothing cached", *WAYS_OUT)
