"""What every test folder shares. No test reaches the real Hub, or the user's caches: they are set aside here, first."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import hypothesis
import local_hub
import pytest
from local_hub import Hub

ROOT = Path(__file__).resolve().parent.parent

# Property tests draw the same examples in every run, so that a commit passes or fails for what it changes.
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("repeatable")

# A shell starts a background job (`make test &`) with Ctrl-C ignored, and a run then keeps it ignored, as it should.
# The tests of Ctrl-C need it to have its usual effect.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Before any test imports ONNX Runtime, whose telemetry starts with it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

# Before any test imports huggingface_hub, which reads where the Hub is only then.
_HUB, _HOME = local_hub.start()


def pytest_unconfigure() -> None:
    """End what was started above."""
    _HUB.stop()
    _HOME.cleanup()


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout (or of the unpacked sdist)."""
    return ROOT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and reference numbers beside the checkout; absent on most machines."""
    folder = ROOT.parent / "shared"
    if not (folder / "data").is_dir():
        pytest.skip(f"needs the real data in {folder}, which is not here")
    return folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """An empty Hub where huggingface_hub looks for it, cold caches in ``tmp_path``, and no pause between retries."""
    from huggingface_hub import constants, file_download
    from huggingface_hub.utils import _http

    from vovnet.terminal import streams

    streams.said.clear()
    cache = str(tmp_path / "hub-cache")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", cache)
    monkeypatch.setenv("HF_HUB_CACHE", cache)  # for processes that the test starts
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for module in (file_download, _http):
        monkeypatch.setattr(module, "time", SimpleNamespace(**vars(time) | {"sleep": lambda seconds: None}))
    assert _HUB.endpoint == constants.ENDPOINT
    _HUB.reset()
    yield _HUB
    _HUB.reset()


@pytest.fixture
def token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> str:
    """Who asks the Hub from here on is known to it, and may read and write everything."""
    monkeypatch.setenv("HF_TOKEN", hub.token)
    return hub.token


@pytest.fixture
def offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """A function that does what ``HF_HUB_OFFLINE=1`` does, from its call on, here and in processes started then."""
    from huggingface_hub import constants

    def go_offline() -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    return go_offline


@pytest.fixture
def impatient(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """huggingface_hub waits 0.3 seconds for an answer instead of ten and more; see ``Hub.slow``."""
    from huggingface_hub import constants, file_download

    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.3)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.3)
    monkeypatch.setattr(file_download, "_ETAG_RETRY_TIMEOUT", 0.3)
