"""Device, driver and versions."""

from __future__ import annotations

import platform
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.gpu.setting import Setting
from benchmarks.gpu.steps import Result, Row, Step
from vovnet.environment import describe_machine
from vovnet.ops.build.sources import CUDA
from vovnet.ops.build.toolchain import USUAL_NVCC

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torch", "torchvision", "timm", "safetensors", "huggingface_hub", "numpy", "triton")


def steps(setting: Setting) -> list[Step]:
    """Return a step per subject, so that one that cannot be asked hides no other."""
    subjects: dict[str, Callable[[], list[Row]]] = {
        "vovnet": _vovnet,
        "packages": _packages,
        "processor": _processor,
        "compilers": _compilers,
    }
    if not setting.cpu:
        subjects = {"device": _device, "driver": _driver, "its settings": _settings, **subjects}

    def step(name: str, rows: Callable[[], list[Row]]) -> Step:
        return Step(name, lambda: Result(rows()))

    return [step(name, rows) for name, rows in subjects.items()]


def _device() -> list[Row]:
    gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
    return [
        ("device", gpu.name),
        ("compute capability", f"{gpu.major}.{gpu.minor}"),
        ("multiprocessors", str(gpu.multi_processor_count)),
        ("memory", f"{gpu.total_memory / 2**30:.1f} GiB"),
        ("L2 cache", f"{gpu.L2_cache_size / 2**20:.0f} MiB"),
        ("CUDA, cuDNN of PyTorch", f"{torch.version.cuda}, {torch.backends.cudnn.version()}"),
    ]


def _driver() -> list[Row]:
    return _asked({"driver": "driver_version"})


def _settings() -> list[Row]:
    fields = {"largest clock": "clocks.max.sm", "largest memory clock": "clocks.max.memory"}
    return _asked({**fields, "power limit": "power.limit", "ECC": "ecc.mode.current", "MIG": "mig.mode.current"})


def _asked(fields: dict[str, str]) -> list[Row]:
    said = _said(["nvidia-smi", f"--query-gpu={','.join(fields.values())}", "--format=csv,noheader"])
    return list(zip(fields, (value.strip() for value in said.splitlines()[0].split(",")), strict=True))


def _vovnet() -> list[Row]:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    major = None if torch.version.cuda is None else int(torch.version.cuda.partition(".")[0])
    try:
        commit = _said(["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"])
    except (OSError, RuntimeError):
        commit = "not known (no git, or no repository)"
    return [("vovnet", version), ("commit", commit), ("sources and flags of the kernels", CUDA.key(major))]


def _packages() -> list[Row]:
    rows: list[Row] = [("Python", platform.python_version())]
    for name in PACKAGES:
        try:
            rows.append((name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            rows.append((name, "not installed"))
    return rows


def _processor() -> list[Row]:
    facts = describe_machine()
    return [
        ("processor", f"{facts['processor']}, {facts['usable cores']} usable cores"),
        ("system", platform.platform()),
    ]


def _compilers() -> list[Row]:
    rows: list[Row] = []
    for name in ("nvcc", "g++"):
        path = shutil.which(name) or (USUAL_NVCC if name == "nvcc" and Path(USUAL_NVCC).exists() else None)
        lines = _said([path, "--version"]).splitlines() if path else ["not found"]
        rows.append((name, next((line for line in lines if "release" in line), lines[0]).strip()))
    return rows


def _said(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=15, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {(done.stderr or done.stdout).strip()[:200]}")
    return done.stdout.strip()
