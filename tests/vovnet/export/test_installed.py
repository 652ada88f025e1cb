"""An environment that has no PyTorch: what docs/how-to/export.md says to install, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from exported_files import CLASSIFIER, write_onnx
from PIL import Image

ROOT = Path(__file__).parents[3]
RUNTIMES = ("onnxruntime", "numpy", "pillow", "typer")


def run(folder: Path, *command: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with nothing of the tests' own environment on Python's path."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    return subprocess.run(
        [*map(str, command)], cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )


@pytest.fixture(scope="module")
def binaries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a new environment with this package and :data:`RUNTIMES`."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    for name in ("vovnet", "adapters", "detection", "hub"):  # pip writes into what it builds
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source / name)
    assert run(folder, sys.executable, "-m", "venv", folder / "venv").returncode == 0
    programs = folder / "venv" / ("Scripts" if os.name == "nt" else "bin")
    # Tools for building come with the first command, which is how a missing network shows.
    done = run(folder, programs / "python", "-m", "pip", "install", "-q", *RUNTIMES)
    if done.returncode:
        pytest.skip(f"packages cannot be installed: {done.stderr.strip().splitlines()[-1]}")
    done = run(folder, programs / "python", "-m", "pip", "install", "-q", "--no-deps", source)
    assert done.returncode == 0, done.stderr
    return programs


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_predict_where_pytorch_is_absent(binaries: Path, tmp_path: Path) -> None:
    listed = json.loads(run(tmp_path, binaries / "python", "-m", "pip", "list", "--format", "json").stdout)
    names = {one["name"].lower() for one in listed}
    assert "vovnet" in names
    assert not names & {"torch", "torchvision", "timm", "safetensors", "huggingface-hub", "pycocotools", "matplotlib"}
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    write_onnx(tmp_path / "d.onnx")
    write_onnx(tmp_path / "c.onnx", CLASSIFIER)
    done = run(tmp_path, binaries / "vovnet", "predict", "a.png", "--weights", "d.onnx", "--output", "out")
    assert done.returncode == 0, done.stderr
    best, other = json.loads((tmp_path / "out" / "a.json").read_text())
    assert (best["bbox"], best["category"], other["bbox"]) == ([0, 0, 30, 40], "disc", [0, 0, 60, 40])
    assert best["score"] == pytest.approx(pixels.mean() / 255, abs=1e-5)
    assert Image.open(tmp_path / "out" / "a.png").size == (60, 40)
    classes = run(tmp_path, binaries / "vovnet", "predict", "a.png", "--weights", "c.onnx")
    assert classes.stdout.count("0.") == 3, classes.stderr
    assert run(tmp_path, binaries / "vovnet", "--help").returncode == 0
    report = run(tmp_path, binaries / "vovnet", "env")
    assert report.returncode == 0, report.stderr
    assert "failed" not in report.stdout
    for arguments in (["train", "quickstart", "--output", "o"], ["evaluate", "--weights", "d.onnx"]):
        refused = run(tmp_path, binaries / "vovnet", *arguments)
        assert refused.returncode != 0
        assert refused.stderr.count("\n") == 1, refused.stderr
    missing = run(tmp_path, binaries / "python", "-c", "import vovnet; vovnet.fuse")
    assert "ModuleNotFoundError: vovnet.fuse needs 'torch'" in missing.stderr
