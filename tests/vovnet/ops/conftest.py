"""What the tests of building share: a tiny library, compilers that fail, and a machine whose GPUs are pretended."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vovnet.ops import cache, native, toolchain
from vovnet.ops.sources import Library

TINY = """
#include <cstddef>
struct KernelLaunch { const char* name; int threads; int dynamic_shared_bytes; };
template <typename T, int kScale>
__global__ void __launch_bounds__(256) scale_kernel(T* values) { values[threadIdx.x] *= kScale; }
void launch(float* values) { scale_kernel<float, -3><<<1, 256, 2048>>>(values); }
extern "C" int vovnet_kernel_launches(int, const KernelLaunch** launches) {
  static const KernelLaunch table[] = {{"scale_kernel<float, -3>", 256, 2048}};
  *launches = table;
  return 1;
}
"""


@pytest.fixture
def compilers() -> None:
    """Skips where nothing can be compiled."""
    if not (shutil.which("nvcc") and shutil.which("g++") and torch.version.cuda):
        pytest.skip("needs nvcc and g++ on PATH and a PyTorch with CUDA")


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    """A library of one small kernel instead of ours, and an empty cache."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "tiny.cu").write_text(TINY)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    for name in ("VOVNET_OPS", "LOCAL_RANK", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    library = Library("tiny", folder)
    monkeypatch.setattr(native, "CUDA", library)
    for name, value in (("_loaded", None), ("_failures", {}), ("_warned", set())):
        monkeypatch.setattr(native, name, value)
    return library


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``gpus((8, 0), (7, 0))`` pretends that these are the machine's GPUs."""

    def pretend(*capabilities: tuple[int, int]) -> None:
        def capability(device: torch.device | int | None = None) -> tuple[int, int]:
            index = device.index if isinstance(device, torch.device) else device
            return capabilities[index or 0]

        monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)

    pretend((8, 0))
    return pretend


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], SimpleNamespace]:
    """``compiler("exit 2")`` puts a script before nvcc; its ``runs()`` lists the compilations that it was asked for."""

    def install(script: str, release: str | None = None) -> SimpleNamespace:
        folder = tmp_path / "bin"
        folder.mkdir()
        log = tmp_path / "runs"
        log.touch()
        major = (torch.version.cuda or "13.0").partition(".")[0]
        version = f"Cuda compilation tools, release {release or f'{major}.0'}, V{release or f'{major}.0.1'}"
        nvcc = folder / "nvcc"
        nvcc.write_text(
            f'#!/bin/sh\nif [ "$1" = --version ]; then echo "{version}"; exit 0; fi\necho "$$" >>{log}\n{script}\n'
        )
        nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        return SimpleNamespace(path=nvcc, runs=lambda: log.read_text().splitlines())

    return install


@pytest.fixture
def no_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without CUDA's compiler."""
    folder = tmp_path / "path"
    folder.mkdir()
    for name in ("g++", "sh"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(toolchain, "USUAL_NVCC", str(tmp_path / "nowhere"))


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """``no_waiting(step)``: where a process would pause, ``step`` happens instead."""

    def instead(step: Callable[[], object]) -> None:
        monkeypatch.setattr(cache, "_pause", step)

    return instead


@pytest.fixture
def compiler_runs(compilers: None, compiler: Callable[..., SimpleNamespace]) -> Callable[[], list[str]]:
    """How often the real nvcc was run."""
    return compiler(f'exec {shutil.which("nvcc")} "$@"').runs
