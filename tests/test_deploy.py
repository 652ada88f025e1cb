"""The server of docs/how-to/deploy.md: what it answers to good and bad uploads, to too many, and after a fork."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import io
import json
import os
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import threading
import urllib.request
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from pages import fenced, rows
from PIL import Image
from tiny_runs import tiny_model

from vovnet.detection.checkpoints.folder import save_detector
from vovnet.detection.models.build import build_detector
from vovnet.errors import InputError

pytest.importorskip("fastapi", reason="needs FastAPI: pip install fastapi uvicorn httpx")
pytest.importorskip("httpx", reason="needs httpx: pip install httpx")
from fastapi import HTTPException
from fastapi.testclient import TestClient

ROOT = Path(__file__).resolve().parent.parent
CATEGORIES = [{"id": 7, "name": "cell"}, {"id": 9, "name": "disc"}]
BOX = {"bbox": [1.0, 2.0, 3.0, 4.0], "score": 0.5, "category_id": 7, "category": "cell"}


@pytest.fixture(scope="module")
def server() -> ModuleType:
    spec = importlib.util.spec_from_file_location("deploy_server", ROOT / "docs" / "how-to" / "deploy_server.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["deploy_server"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


class Model:
    """Stands in for a detector: counts the images of each call, and waits or fails if told to."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.entered = threading.Event()
        self.go_on = threading.Event()
        self.go_on.set()
        self.error: Exception | None = None

    def __call__(self, images: Sequence[np.ndarray[Any, Any]]) -> list[list[dict[str, Any]]]:
        self.calls.append(len(images))
        self.entered.set()
        assert self.go_on.wait(60)
        if self.error is not None:
            raise self.error
        if any(image.shape[0] == 1 for image in images):
            raise InputError("/secret/place: too narrow")
        return [[BOX] for _ in images]


def client(server: ModuleType, monkeypatch: pytest.MonkeyPatch, model: Model, **settings: Any) -> TestClient:
    monkeypatch.setattr(server, "load", lambda _: model)
    app = server.create_app(server.Settings(weights="unused", **settings))
    return TestClient(app, raise_server_exceptions=False)


def encoded(size: tuple[int, int] = (40, 30), kind: str = "JPEG") -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def png_of_zeros(width: int, height: int) -> bytes:
    """A PNG file of one bit a pixel, whose kilobytes stand for as many pixels as one likes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(8))) + chunk(b"IEND", b"")


def post(client: TestClient, body: Any, kind: str = "image/jpeg") -> Any:
    return client.post("/detect", content=body, headers={"Content-Type": kind})


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_an_image_is_answered_with_its_detections(
    server: ModuleType, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    with client(server, monkeypatch, Model()) as http:
        answer = post(http, encoded(kind=kind), f"image/{kind.lower()}")
        assert answer.status_code == 200
        assert answer.json() == {"detections": [BOX]}
        assert http.get("/healthz").json() == {"status": "ok"}


BAD = {
    "no body": (b"", "image/png", 422),
    "another type": (encoded(), "text/plain", 415),
    "a form": (encoded(), "multipart/form-data; boundary=x", 415),
    "no image": (b"hello " * 100, "image/png", 415),
    "a PDF": (b"%PDF-1.7\n" + bytes(500), "image/jpeg", 415),
    "truncated": (encoded()[:400], "image/jpeg", 422),
    "damaged": (b"\x89PNG\r\n\x1a\n" + bytes(500), "image/png", 422),
    "200 megapixels": (png_of_zeros(20_000, 10_000), "image/png", 413),
    "many bytes": (b"\xff\xd8\xff" + bytes(200_000), "image/jpeg", 413),
    "many bytes in pieces": (iter([b"\xff\xd8\xff", bytes(100_000), bytes(100_000)]), "image/jpeg", 413),
    "one row": (encoded((2000, 1), "PNG"), "image/png", 422),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_upload_gets_one_line_that_tells_nothing_of_the_server(
    server: ModuleType, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    body, kind, status = BAD[case]
    model = Model()
    with client(server, monkeypatch, model, max_bytes=150_000) as http:
        answer = post(http, body, kind)
        assert answer.status_code == status
        detail = answer.json()["detail"]
        assert re.fullmatch(r"[^\n/\\]*", detail.replace("image/", "")), detail
        assert "Traceback" not in detail
        assert "object at" not in detail
        assert model.calls in ([], [1])
        assert post(http, encoded()).status_code == 200


def test_a_detector_that_fails_is_an_error_of_the_server_and_does_not_end_it(
    server: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Model()
    with client(server, monkeypatch, model) as http:
        model.error = RuntimeError("/secret/place: out of memory")
        answer = post(http, encoded())
        assert answer.status_code == 500
        assert "secret" not in answer.text
        model.error = None
        assert post(http, encoded()).status_code == 200


def test_a_full_server_says_when_to_come_back(server: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    with client(server, monkeypatch, model, places=1) as http, ThreadPoolExecutor(1) as others:
        model.go_on.clear()
        first = others.submit(post, http, encoded())
        assert model.entered.wait(60)
        refused = post(http, encoded())
        model.go_on.set()
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert first.result().status_code == 200
        assert post(http, encoded()).status_code == 200


def test_who_waits_too_long_is_refused_and_not_computed(server: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    with client(server, monkeypatch, model, answer_seconds=0.05) as http:
        model.go_on.clear()
        late = [post(http, encoded()) for _ in range(3)]  # one is in the model, two wait for it
        assert [one.status_code for one in late] == [503, 503, 503]
        assert all("Retry-After" in one.headers for one in late)
        model.go_on.set()
    assert model.calls == [1]


def test_nothing_is_computed_for_a_client_that_has_gone(server: ModuleType) -> None:
    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def leave() -> bool:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        with pytest.raises(HTTPException):
            await server.answered(SimpleNamespace(receive=receive), answer, 60)
        return answer.cancelled()

    assert asyncio.run(leave())


def test_images_that_come_together_are_computed_together(server: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Model()
    with client(server, monkeypatch, model, batch=4, wait_ms=60_000) as http, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: post(http, encoded()), range(4)))
    assert [one.status_code for one in answers] == [200] * 4
    assert model.calls == [4]


def test_a_bad_image_does_not_spoil_its_batch(server: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = [encoded(), encoded()[:400], encoded((2000, 1)), encoded()]
    with client(server, monkeypatch, Model(), batch=4, wait_ms=60_000) as http, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda body: post(http, body), bodies))
    assert [one.status_code for one in answers] == [200, 422, 422, 200]


def test_an_end_answers_what_is_in_the_queue(server: ModuleType) -> None:
    model = Model()
    model.go_on.clear()
    worker = server.Worker(model, server.Settings(weights="unused"))
    assert not worker.is_well()
    worker.start()
    answers = [worker.submit(encoded()) for _ in range(3)]
    assert worker.is_well()
    model.go_on.set()
    worker.stop()
    assert [one.result(timeout=0) for one in answers] == [[BOX]] * 3
    assert not worker.is_well()


@pytest.mark.parametrize(
    ("variable", "value"), [("WEIGHTS", ""), ("THREADS", "two"), ("BATCH", "0"), ("WAIT_MS", "nan"), ("PLACES", "-1")]
)
def test_a_wrong_setting_is_named(
    server: ModuleType, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv("WEIGHTS", "runs/mine")
    monkeypatch.setenv(variable, value)
    with pytest.raises(SystemExit, match=variable):
        server.Settings.from_environment()


def test_a_detector_that_is_not_there_ends_the_start_with_one_line(server: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="nowhere") as stopped:
        server.create_app(server.Settings(weights=str(tmp_path / "nowhere")))
    assert "\n" not in str(stopped.value)


def test_every_setting_is_documented_with_its_default(server: ModuleType) -> None:
    table = {row[0].strip("`"): row[1].strip("`") for row in rows("deploy.md", "### Settings")[1:]}
    fields = server.Settings.__dataclass_fields__
    assert list(table) == [name.upper() for name in fields]
    for name, field in fields.items():
        assert table[name.upper()] == ("" if name == "weights" else f"{field.default}"), name


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small detector that finds something everywhere."""
    folder = tmp_path_factory.mktemp("detector")
    torch.manual_seed(0)
    recipe = tiny_model("vovnet27_slim", norm="bn", pretrained=False, num_classes=2, box_score_thresh=0.0)
    save_detector(folder, build_detector(recipe), recipe, CATEGORIES)
    return folder


@pytest.mark.parametrize("fuse", ["no", "fp32"])
def test_a_detector_is_served_as_it_predicts(server: ModuleType, detector: Path, fuse: str) -> None:
    from vovnet.detection import predict
    from vovnet.hub import load_detector

    threads = torch.get_num_threads()
    app = server.create_app(server.Settings(weights=str(detector), fuse=fuse, threads=threads))
    body = encoded((64, 48), "PNG")
    with TestClient(app) as http:
        found = post(http, body, "image/png").json()["detections"]
    (expected,) = predict(load_detector(detector), [io.BytesIO(body)])
    assert len(expected) > 3
    assert len(found) == len(expected)
    np.testing.assert_allclose([one["score"] for one in found], [one["score"] for one in expected], atol=1e-4)
    if fuse == "no":
        assert found == expected


WATCHED = """
import os, sys
written = []

def hook(event, arguments):
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        written.append(os.fsdecode(arguments[0]) if not isinstance(arguments[0], int) else "")
    elif event in ("os.mkdir", "os.rename", "tempfile.mkstemp"):
        written.append(os.fsdecode(arguments[0]))

sys.addaudithook(hook)
sys.path.insert(0, sys.argv[1])
from fastapi.testclient import TestClient
import deploy_server

with TestClient(deploy_server.create_app()) as http:
    answer = http.post("/detect", content=open(sys.argv[2], "rb").read(), headers={"Content-Type": "image/jpeg"})
    assert answer.status_code == 200, answer.text
print("\\n".join(os.path.abspath(one) for one in written if one))
"""


def test_the_environment_of_the_image_keeps_every_file_below_tmp(detector: Path, tmp_path: Path) -> None:
    dockerfile = fenced("deploy.md", "dockerfile")[0].replace("\\\n", " ")
    (line,) = (line for line in dockerfile.splitlines() if line.startswith("ENV ") and "HOME" in line)
    given = dict(pair.split("=", 1) for pair in shlex.split(line)[1:])
    given |= {"PATH": os.environ["PATH"], "WEIGHTS": str(detector), "FUSE": "no", "VOVNET_OPS": "off"}
    (tmp_path / "a.jpg").write_bytes(encoded())
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, str(ROOT / "docs" / "how-to"), str(tmp_path / "a.jpg")],
        cwd=ROOT, env=given, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outside = [one for one in done.stdout.splitlines() if not one.startswith(("/tmp/", "/dev/"))]
    assert outside == []


def ask(address: str, body: bytes) -> list[dict[str, Any]]:
    request = urllib.request.Request(f"http://{address}/detect", body, {"Content-Type": "image/png"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return list(json.load(answer)["detections"])


def answers_of(program: Sequence[str], weights: Path, fuse: str, requests: int) -> list[list[dict[str, Any]]]:
    """Start a server in a process of its own, let clients ask it at the same time, and end it with SIGTERM.

    Args:
        program: the arguments; ``{fd}`` becomes the descriptor of a socket that listens already, so that nobody has to
            wait for the server.
        weights: what the server serves.
        fuse: its setting.
        requests: how many clients ask.
    """
    environment = os.environ | {"WEIGHTS": str(weights), "FUSE": fuse, "THREADS": "2", "PYTHONPATH": str(ROOT)}
    environment.pop("OMP_NUM_THREADS", None)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        arguments = [sys.executable, "-m", *(one.format(fd=listening.fileno()) for one in program)]
        process = subprocess.Popen(
            arguments, cwd=ROOT / "docs" / "how-to", env=environment, pass_fds=[listening.fileno()],
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            address = "{}:{}".format(*listening.getsockname())
            with ThreadPoolExecutor(requests) as pool:
                found = list(pool.map(lambda _: ask(address, encoded((64, 48), "PNG")), range(requests)))
            process.send_signal(signal.SIGTERM)
            _, said = process.communicate(timeout=60)
            assert process.returncode in (0, -signal.SIGTERM), said.decode()
            return found
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # gunicorn's workers, too
            process.wait()


def test_a_real_server_answers_and_ends_on_sigterm(detector: Path) -> None:
    pytest.importorskip("uvicorn", reason="needs uvicorn: pip install uvicorn")
    first, *others = answers_of(["uvicorn", "--factory", "deploy_server:create_app", "--fd", "{fd}"], detector, "no", 4)
    assert len(first) > 3
    assert others == [first] * 3


@pytest.fixture(scope="module")
def exported(detector: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function that exports the detector to a format and returns the file."""
    from vovnet.detection.export import export_detector
    from vovnet.export.writing import Format
    from vovnet.hub import load_detector

    def export(suffix: str) -> Path:
        path = tmp_path_factory.mktemp("exported") / f"model{suffix}"
        kind = {".onnx": "onnx", ".xml": "openvino"}[suffix]
        export_detector(load_detector(detector), path, cast(Format, kind), size=(48, 64))
        return path

    return export


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["plain", "fused", ".onnx", ".xml"])
def test_processes_that_gunicorn_forks_after_the_model_has_run_do_not_hang(
    detector: Path, exported: Callable[[str], Path], kind: str
) -> None:
    pytest.importorskip("gunicorn", reason="needs gunicorn: pip install gunicorn")
    pytest.importorskip("uvicorn_worker", reason="needs uvicorn-worker: pip install uvicorn-worker")
    weights = exported(kind) if kind.startswith(".") else detector
    program = ["gunicorn", "--preload", "--workers", "2", "--worker-class", "uvicorn_worker.UvicornWorker"]
    program += ["--bind", "fd://{fd}", "deploy_server:create_app()"]
    first, *others = answers_of(program, weights, "fp32" if kind == "fused" else "no", 16)
    assert len(first) > 3
    for found in others:
        np.testing.assert_allclose([one["bbox"] for one in found], [one["bbox"] for one in first], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
def test_an_exported_file_is_served_as_its_detector(
    server: ModuleType, detector: Path, exported: Callable[[str], Path], suffix: str
) -> None:
    from vovnet.detection import predict
    from vovnet.hub import load_detector

    body = encoded((64, 48), "PNG")
    with TestClient(server.create_app(server.Settings(weights=str(exported(suffix))))) as http:
        found = post(http, body, "image/png").json()["detections"]
        assert post(http, encoded((64, 50), "PNG"), "image/png").status_code == 422
    (expected,) = predict(load_detector(detector), [io.BytesIO(body)])
    assert len(found) == len(expected) > 3
    np.testing.assert_allclose([one["score"] for one in found], [one["score"] for one in expected], atol=1e-4)
