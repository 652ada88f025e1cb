"""A real Chromium that opens pages of this machine, driven by Playwright, and ONNX Runtime Web in it."""

from __future__ import annotations

import base64
import contextlib
import functools
import gzip
import os
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from vovnet.export.web.runtime import VERSION, web_runtime
from vovnet.folders.home import user_cache

# No look-up of Google's hosts: the browser reaches nothing but the page.
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"] + [
    f"--disable-{what}" for what in ("background-networking", "component-update", "sync")
]


@contextlib.contextmanager
def chromium(**launch: Any) -> Iterator[Any]:
    """Yield Playwright's browser. Skip the test where Playwright or Chromium is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=_FLAGS, **launch)
        try:
            yield browser
        finally:
            browser.close()


@contextlib.contextmanager
def served(folder: Path, headers: dict[str, str] | None = None) -> Iterator[str]:
    """Yield the address of a server of static files."""

    class Handler(SimpleHTTPRequestHandler):
        def end_headers(self) -> None:
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            super().end_headers()

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/"
        finally:
            server.shutdown()


def onnxruntime_web() -> Path:
    """Return the npm package: its folder in ONNXRUNTIME_WEB, or the archive that ``export-web`` has fetched.

    Skip the test where it is missing.
    """
    given = os.environ.get("ONNXRUNTIME_WEB")
    path = Path(given) if given else user_cache() / "vovnet" / "npm" / f"onnxruntime-web-{VERSION}.tgz"
    if not path.exists():
        pytest.skip("needs ONNX Runtime Web: `make test-page` fetches it")
    return path


_RUN = """async ({dtype, shape}) => {
  const ort = await import("/ort.mjs");
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = await (await fetch("/ort.wasm")).arrayBuffer();
  const session = await ort.InferenceSession.create("/model.onnx");
  const bytes = await (await fetch("/image.bin")).arrayBuffer();
  const values = dtype === "uint8" ? new Uint8Array(bytes) : new Float32Array(bytes);
  const found = await session.run({image: new ort.Tensor(dtype, values, shape)});
  const outputs = {};
  for (const [name, {type, dims, data}] of Object.entries(found)) {
    let text = "";
    for (const byte of new Uint8Array(data.buffer, data.byteOffset, data.byteLength)) text += String.fromCharCode(byte);
    outputs[name] = {type, dims: [...dims], data: btoa(text)};
  }
  return outputs;
}"""


def run_in_browser(model: Path, image: NDArray[Any], scratch: Path) -> dict[str, NDArray[Any]]:
    """Return the outputs of an ONNX file for an image, computed in a page.

    Args:
        model: the file.
        image: its input.
        scratch: a folder for the page.
    """
    runtime = web_runtime(onnxruntime_web())
    files = {
        "index.html": b"<!doctype html>",
        "ort.mjs": runtime.script,
        "ort.wasm": gzip.decompress(runtime.binary),
        "model.onnx": model.read_bytes(),
        "image.bin": image.tobytes(),
    }
    scratch.mkdir()
    for name, content in files.items():
        (scratch / name).write_bytes(content)
    with chromium() as browser, served(scratch) as address:
        page = browser.new_page()
        page.goto(address)
        outputs = page.evaluate(_RUN, {"dtype": str(image.dtype), "shape": image.shape})
    return {
        name: np.frombuffer(base64.b64decode(one["data"]), dtype=one["type"]).reshape(one["dims"])
        for name, one in outputs.items()
    }
