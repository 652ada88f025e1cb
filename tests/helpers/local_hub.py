"""The tests' side of the stand-in Hub (``tests/hub/hub_server.py``): starts it and orders it about."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SERVER = Path(__file__).parent / "hub_server.py"
ALWAYS = 10**9


class Seen(NamedTuple):
    """A request that reached the Hub; equals a plain tuple."""

    method: str
    path: str
    """Unquoted, without the query."""
    status: int
    """The status of the answer; 0 if there was none."""


class Hub:
    """A running stand-in Hub.

    Attributes:
        endpoint: its address, ``http://127.0.0.1:PORT``.
        token: the one that it accepts.
    """

    def __init__(self) -> None:
        command = [sys.executable, "-S", "-E", str(SERVER)]
        # A session of its own: Ctrl-C is for the tests. It ends with its stdin, so also when this process is killed.
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._process.stdout is not None
        port, _, self.token = self._process.stdout.readline().strip().partition(" ")
        if not port:
            raise RuntimeError(f"{SERVER} did not start; its stderr says why")
        self.endpoint = f"http://127.0.0.1:{port}"

    def stop(self) -> None:
        """End the process."""
        self._process.terminate()  # forked processes may still hold its stdin
        self._process.communicate()

    def reset(self) -> None:
        """Forget all repositories, files, faults and requests, and be up."""
        self._order("reset")

    # What it holds.

    def create(self, name: str, files: Mapping[str, bytes], *, private: bool = False, gated: bool = False) -> str:
        """Make a repository with these files on ``main``, without a request; returns the commit."""
        return self._order("create", name=name, files=_encoded(files), private=private, gated=gated)

    def commit(self, name: str, files: Mapping[str, bytes], *, branch: str = "main") -> str:
        """Change files on a branch, which is made if need be; returns the commit."""
        return self._order("commit", name=name, files=_encoded(files), branch=branch)

    def tag(self, name: str, tag: str, *, revision: str = "main") -> None:
        """Give a commit a tag."""
        self._order("tag", name=name, tag=tag, revision=revision)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """A repository's files; one that a client made also holds the Hub's ``.gitattributes``."""
        return {
            path: base64.b64decode(text) for path, text in self._order("files", name=name, revision=revision).items()
        }

    def repositories(self) -> set[str]:
        return {one["name"] for one in self._order("repositories")}

    def is_private(self, name: str) -> bool:
        return self._described(name)["private"]

    def tags(self, name: str) -> dict[str, str]:
        """Tag → commit."""
        return self._described(name)["tags"]

    def head(self, name: str, branch: str = "main") -> str:
        """A branch's commit."""
        return self._described(name)["branches"][branch]

    def put_file(self, name: str, content: bytes) -> str:
        """Serve a file outside of any repository; returns its address."""
        return self.endpoint + self._order("put_file", name=name, content=base64.b64encode(content).decode())

    # What goes wrong: with the next ``times`` requests with one of the methods whose path holds the regular expression
    # ``pattern`` (searched in it, unquoted and without the query). Earlier orders go first.

    def fail(
        self,
        pattern: str,
        times: int = 1,
        *,
        status: int = 503,
        headers: Mapping[str, str] | None = None,
        methods: Sequence[str] = ("GET", "HEAD", "POST", "PUT", "DELETE"),
    ) -> None:
        """Answer with a status; give a 429 its ``{"Retry-After": "0"}``."""
        self._fault("status", pattern, times, methods, status=status, headers=dict(headers or {}))

    def slow(self, pattern: str, times: int = 1, *, methods: Sequence[str] = ("GET", "HEAD", "POST", "PUT")) -> None:
        """Do not answer until the client hangs up: give it little patience (fixture ``impatient``)."""
        self._fault("slow", pattern, times, methods)

    def drop(self, pattern: str, times: int = 1, *, methods: Sequence[str] = ("GET", "HEAD", "POST", "PUT")) -> None:
        """Close the connection without an answer."""
        self._fault("drop", pattern, times, methods)

    def cut(self, pattern: str, times: int = 1) -> None:
        """Close the connection after half of the body that was announced."""
        self._fault("cut", pattern, times, ("GET",))

    def flip(self, pattern: str, times: int = 1) -> None:
        """Send the body with one bit in its middle flipped."""
        self._fault("flip", pattern, times, ("GET",))

    def down(self) -> None:
        """Refuse connections until :meth:`up`."""
        self._order("down")

    def up(self) -> None:
        self._order("up")

    # What it saw.

    def log(self) -> list[Seen]:
        """Every request since the reset, in order."""
        return [Seen(*line) for line in self._order("log")]

    def _described(self, name: str) -> dict[str, Any]:
        (described,) = (one for one in self._order("repositories") if one["name"] == name)
        return described

    def _fault(self, kind: str, pattern: str, times: int, methods: Sequence[str], **more: object) -> None:
        self._order("fault", kind=kind, pattern=pattern, times=times, methods=list(methods), **more)

    def _order(self, call: str, **arguments: object) -> Any:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"call": call, **arguments}), file=self._process.stdin, flush=True)
        reply = json.loads(self._process.stdout.readline())
        if "error" in reply:
            raise LookupError(f"the stand-in Hub: {call}: {reply['error']}")
        return reply["result"]


def _encoded(files: Mapping[str, bytes]) -> dict[str, str]:
    return {path: base64.b64encode(content).decode() for path, content in files.items()}


def isolate(endpoint: str, home: str) -> None:
    """Point huggingface_hub and torch.hub of this process and its children at a Hub and at empty caches.

    Before huggingface_hub is imported: it reads most of this once.
    """
    for name in list(os.environ):
        if name.startswith(("HF_", "HUGGING_FACE_", "HUGGINGFACE_")) or name == "TRANSFORMERS_OFFLINE":
            del os.environ[name]
    local = ",".join(filter(None, [os.environ.get("NO_PROXY"), "127.0.0.1", "localhost"]))
    os.environ |= {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": os.path.join(home, "huggingface"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",  # large files travel over HTTP, as with a client without hf_xet
        "TORCH_HOME": os.path.join(home, "torch"),
        "NO_PROXY": local,
        "no_proxy": local,
    }
    os.environ.pop("VOVNET_HUB_NAMESPACE", None)


def start() -> tuple[Hub, tempfile.TemporaryDirectory[str]]:
    """Start a Hub and point this process and its children at it.

    Returns:
        The Hub, to be stopped, and the folder of the caches, to be cleaned up.
    """
    if "huggingface_hub" in sys.modules:
        raise RuntimeError("huggingface_hub is imported already and knows the real Hub's address; import it later")
    hub, home = Hub(), tempfile.TemporaryDirectory(prefix="vovnet-tests-")
    isolate(hub.endpoint, home.name)
    return hub, home
