"""Runs an ONNX file in ONNX Runtime Web, in a headless Chromium that sees only a server of this process."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

_PAGE = """<!doctype html><meta charset="utf-8"><script type="module">
const post = (path, text) => fetch(path, {method: "POST", body: text});
try {
  const ort = await import("/ort/ort.wasm.min.mjs");
  ort.env.wasm.wasmPaths = "/ort/";
  ort.env.wasm.numThreads = 1;
  const session = await ort.InferenceSession.create("/model.onnx");
  const {dtype, shape} = await (await fetch("/image.json")).json();
  const bytes = await (await fetch("/image.bin")).arrayBuffer();
  const values = dtype === "uint8" ? new Uint8Array(bytes) : new Float32Array(bytes);
  const found = await session.run({image: new ort.Tensor(dtype, values, shape)});
  const outputs = {};
  for (const [name, {type, dims, data}] of Object.entries(found)) {
    const raw = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    let text = "";
    for (const byte of raw) text += String.fromCharCode(byte);
    outputs[name] = {type, dims, data: btoa(text)};
  }
  await post("/outputs", JSON.stringify(outputs));
} catch (error) {
  await post("/failed", String(error));
}
</script>"""
_TYPES = {".mjs": "text/javascript", ".wasm": "application/wasm"}
# No update, no look-up of Google's hosts: the browser reaches nothing but the page.
_FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"] + [
    f"--disable-{what}" for what in ("background-networking", "component-update", "sync", "dev-shm-usage")
]


def web_runtime() -> Path:
    """Return the folder ``dist`` of onnxruntime-web. Skip the test where it or Chromium is missing."""
    if shutil.which("chromium") is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    folder = Path(os.environ.get("ONNXRUNTIME_WEB", "node_modules/onnxruntime-web"), "dist")
    if not (folder / "ort.wasm.min.mjs").is_file():
        pytest.skip("needs onnxruntime-web: npm install onnxruntime-web, and its folder in ONNXRUNTIME_WEB")
    return folder


def run_in_browser(model: Path, image: NDArray[Any], scratch: Path, timeout: float = 300) -> dict[str, NDArray[Any]]:
    """Return the outputs that a page computes.

    Args:
        model: an ONNX file.
        image: its input.
        scratch: an empty folder for the browser's profile.
        timeout: seconds to wait for the page.
    """
    files = {
        "/": _PAGE.encode(),
        "/image.json": json.dumps({"dtype": str(image.dtype), "shape": image.shape}).encode(),
        "/image.bin": image.tobytes(),
        "/model.onnx": model.read_bytes(),
    }
    page = _Page(files, web_runtime())
    command = ["chromium", *_FLAGS, f"--user-data-dir={scratch}", page.address]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
        try:
            assert page.answered.wait(timeout), "the page did not answer"
        finally:
            browser.terminate()
            page.close()
    path, body = page.answer
    assert path == "/outputs", body
    return {name: _array(value) for name, value in json.loads(body).items()}


def _array(value: Mapping[str, Any]) -> NDArray[Any]:
    raw = np.frombuffer(base64.b64decode(value["data"]), dtype=value["type"])
    return raw.reshape([int(side) for side in value["dims"]])


class _Page:
    """A server of a few files, which keeps what is posted to it."""

    def __init__(self, files: Mapping[str, bytes], runtime: Path) -> None:
        self.answered = threading.Event()
        self.answer: tuple[str, str] = ("", "")
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                name = Path(self.path).name
                body = files.get(self.path)
                if body is None and self.path == f"/ort/{name}" and (runtime / name).is_file():
                    body = (runtime / name).read_bytes()
                self.send_response(200 if body is not None else 404)
                self.send_header("Content-Type", _TYPES.get(Path(self.path).suffix, "text/html"))
                self.end_headers()
                self.wfile.write(body or b"")

            def do_POST(self) -> None:
                owner.answer = self.path, self.rfile.read(int(self.headers["Content-Length"])).decode()
                self.send_response(200)
                self.end_headers()
                owner.answered.set()

            def log_message(self, format: str, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}/"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
