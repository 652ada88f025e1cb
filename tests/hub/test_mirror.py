"""Behind a mirror that others wrote: olah, which asks the Hub for what it lacks, or gives what it has without one.

The stand-in Hub is ours, and so may share our misunderstandings of the Hub's protocol. Here both it and the client talk
to a server that was written against the real ones.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import support
import torch
from hub_folders import Made
from huggingface_hub import snapshot_download
from local_hub import Hub
from safetensors.torch import load
from support import Outcome, command, contents

from vovnet.hub import publish
from vovnet.hub.manifest import PUBLISHED_FILES

pytest.importorskip("olah", reason="needs the mirror olah, of the dev extra")

SLIM, DETECTOR, NOTHING = "me/slim", "me/detector", "me/nothing"
LOADED = ("config.json", "model.safetensors")
PATIENCE = 60.0  # seconds for olah to start on a busy machine; a second is usual

# Ends with its stdin, also when the tests are killed.
OLAH = """
import os, sys, threading

threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
from olah.server import cli

cli()
"""

CLIENT = """
import dataclasses, sys, timm, torch

slim = timm.create_model("hf-hub:me/slim", pretrained=True)
assert not any(name.split(".")[0] == "vovnet" for name in sys.modules)

from vovnet.hub import load_detector

sys.path.append(sys.argv[1])  # behind vovnet, which has a namesake there
from support import command

detectors = {revision: load_detector("me/detector", revision) for revision in ("main", "owls")}
torch.save({
    "slim": slim.state_dict(),
    "detectors": {revision: detector.state_dict() for revision, detector in detectors.items()},
    "categories": {revision: detector.categories for revision, detector in detectors.items()},
    "verify": {name: dataclasses.asdict(command("verify", name)) for name in sys.argv[2:]},
}, "answers.pt")
"""


def environment(**more: str) -> dict[str, str]:
    """The environment of a user without a token. No proxy, because every request stays on this machine."""
    ours = ("HF_ENDPOINT", "HF_HUB_CACHE", "HF_TOKEN")
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return {name: value for name, value in kept.items() if name not in ours} | more


@contextlib.contextmanager
def olah(hub: Hub, folder: Path, *, offline: bool) -> Iterator[str]:
    """Run a mirror of the Hub in a process of its own, with its cache in ``folder``; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = folder / f"olah-{port}"
    place.mkdir()
    upstream = hub.endpoint.removeprefix("http://")
    settings = {
        "host": "127.0.0.1",
        "port": port,
        "repos-path": str(folder / "repos"),
        "hf-scheme": "http",
        "hf-netloc": upstream,
        "hf-lfs-netloc": upstream,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    lines = ["[basic]", *lines, "[accessibility]", f"offline = {json.dumps(offline)}"]
    (place / "olah.toml").write_text("\n".join(lines))
    with (place / "output").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", OLAH, "--config", "olah.toml", "--log-path", "logs"],
            cwd=place,
            env=environment(GIT_PYTHON_REFRESH="quiet"),  # it does without git
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        if not takes_connections(process, port):
            raise RuntimeError(f"olah did not start:\n{(place / 'output').read_text()}")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.communicate()


def takes_connections(process: subprocess.Popen[bytes], port: int) -> bool:
    """Return True if a process accepts connections before it ends or a time limit is reached."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.05)
    return False


@pytest.fixture
def mirror(hub: Hub, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """A function that starts a mirror, ``offline`` or not, and gives its address; those of a test share one cache.

    A test's own, because a mirror remembers a repository longer than the stand-in Hub, which forgets after each test.
    """
    with contextlib.ExitStack() as running:
        yield lambda *, offline=False: running.enter_context(olah(hub, tmp_path, offline=offline))


@pytest.fixture
def published(hub: Hub, token: str, slim: Made, run: Path) -> Hub:
    """The Hub with a classifier and a detector that anybody may read; a branch of the detector calls cats owls."""
    publish(slim.folder, SLIM, yes=True, license="other", private=False)
    publish(run, DETECTOR, yes=True, license="apache-2.0", private=False)
    config = hub.files(DETECTOR)["config.json"]
    hub.commit(DETECTOR, {"config.json": config.replace(b'"cat"', b'"owl"')}, branch="owls")
    return hub


class Client:
    """A new process of a user, with an empty cache and a mirror in ``HF_ENDPOINT``."""

    def __init__(self, endpoint: str, place: Path, *verified: str) -> None:
        place.mkdir()
        self.home = place / "home"
        tests = Path(support.__file__).parent
        done = subprocess.run(
            [sys.executable, "-c", CLIENT, str(tests), *verified],
            cwd=place,
            env=environment(HF_ENDPOINT=endpoint, HF_HOME=str(self.home)),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        self.answers: dict[str, Any] = torch.load(place / "answers.pt")

    def verify(self, name: str) -> Outcome:
        """Run `vovnet verify NAME` there and return the result."""
        return Outcome(**self.answers["verify"][name])

    def downloaded(self, name: str) -> dict[str, dict[str, bytes]]:
        """Its cache's files of a repository, by commit."""
        snapshots = self.home / "hub" / f"models--{name.replace('/', '--')}" / "snapshots"
        return {snapshot.name: contents(snapshot) for snapshot in snapshots.iterdir()}


def expect_what_was_published(client: Client, hub: Hub) -> None:
    """Hold files, weights and verifications to what the Hub holds, which still knows when it is down."""
    main, owls, slim = hub.files(DETECTOR), hub.files(DETECTOR, "owls"), hub.files(SLIM)
    assert client.downloaded(SLIM) == {hub.head(SLIM): {name: slim[name] for name in LOADED}}
    assert client.downloaded(DETECTOR) == {
        hub.head(DETECTOR): {name: main[name] for name in PUBLISHED_FILES},
        hub.head(DETECTOR, "owls"): {name: owls[name] for name in LOADED},
    }
    expect_equal(client.answers["slim"], load(slim["model.safetensors"]))
    for revision, cat in (("main", "cat"), ("owls", "owl")):
        expect_equal(client.answers["detectors"][revision], load(main["model.safetensors"]))
        assert client.answers["categories"][revision] == [{"id": 4, "name": cat}, {"id": 2, "name": "dog"}]
    outcome = client.verify(DETECTOR)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith(f"{DETECTOR}: ")


def expect_equal(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[key], expected[key]) for key in expected)


WAYS_OUT = ("HF_ENDPOINT", "give their folder")


@pytest.mark.slow
def test_what_is_published_comes_through_a_mirror_also_when_the_hub_is_gone(
    published: Hub, mirror: Callable[..., str], tmp_path: Path
) -> None:
    before = len(published.log())
    first = Client(mirror(), tmp_path / "first", DETECTOR, NOTHING, f"{DETECTOR}@v9")
    expect_what_was_published(first, published)
    bodies = [seen for seen in published.log()[before:] if seen.method == "GET" and "/resolve/" in seen.path]
    assert len(bodies) == len(LOADED) + len(PUBLISHED_FILES) + 1
    assert {seen.status for seen in bodies} == {206}  # the mirror asks for parts, the client would not
    assert first.verify(NOTHING).code == 1
    first.verify(NOTHING).refused(f"'{NOTHING}'", "no such repository", *WAYS_OUT)
    first.verify(f"{DETECTOR}@v9").refused(f"'{DETECTOR}'", "no revision 'v9'")

    published.down()
    asked = published.log()
    second = Client(mirror(offline=True), tmp_path / "second", DETECTOR, NOTHING, f"{DETECTOR}@v9", SLIM)
    expect_what_was_published(second, published)
    assert published.log() == asked
    # A mirror that asks nobody cannot tell what does not exist from what nobody has asked it for before.
    assert second.verify(NOTHING).code == 1
    second.verify(NOTHING).refused(f"'{NOTHING}'", "no such repository", *WAYS_OUT)
    second.verify(f"{DETECTOR}@v9").refused(f"'{DETECTOR}'", "revision 'v9'", *WAYS_OUT)
    second.verify(SLIM).refused(f"'{SLIM}'", "README.md", *WAYS_OUT)


@pytest.mark.usefixtures("token")
def test_what_a_mirror_damages_is_noticed(hub: Hub, slim: Made, mirror: Callable[..., str], tmp_path: Path) -> None:
    publish(slim.folder, SLIM, yes=True, license="other", private=False)
    hub.flip("safetensors")
    folder = snapshot_download(SLIM, endpoint=mirror(), local_dir=tmp_path / "got")
    assert (Path(folder) / "model.safetensors").read_bytes() != hub.files(SLIM)["model.safetensors"]
    command("verify", folder).refused("model.safetensors")
