"""An npm package of ONNX Runtime Web that is one in form only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture
def ort(tmp_path: Path) -> Path:
    folder = tmp_path / "onnxruntime-web"
    (folder / "dist").mkdir(parents=True)
    (folder / "package.json").write_text(json.dumps({"name": "onnxruntime-web", "version": "1.2.3"}))
    (folder / "dist" / "ort.wasm.bundle.min.mjs").write_bytes(b"export {};")
    (folder / "dist" / "ort-wasm-simd-threaded.wasm").write_bytes(b"\0asm" * 1000)
    return folder
