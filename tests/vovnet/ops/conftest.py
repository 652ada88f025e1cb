"""Fixtures for the tests of building: tiny libraries, compilers that fail, and simulated GPUs."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from vovnet.ops.build import cache, loader, prebuilt, sources, toolchain
from vovnet.ops.build.sources import Library

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


STANDIN = """
const char *plain(), *avx2(), *avx512(), *avx512_bf16();
static const char* const table[] = {
  plain(),
#ifndef VOVNET_PLAIN_ONLY
  avx2(), avx512(),
#ifndef VOVNET_NO_AVX512_BF16
  avx512_bf16(),
#endif
#endif
  nullptr};
extern "C" const char* const* compiled_in() { return table; }
"""
MACROS = {"avx2": "__FMA__", "avx512": "__AVX512BW__", "avx512_bf16": "__AVX512BF16__"}


@pytest.fixture
def compilers() -> None:
    """Skip the test if nothing can be compiled."""
    if not (shutil.which("nvcc") and shutil.which("g++") and torch.version.cuda):
        pytest.skip("needs nvcc and g++ on PATH and a PyTorch with CUDA")


@pytest.fixture
def nothing_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty cache, nothing installed ready-made, no variables, and no loaded library or remembered failure."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(prebuilt, "IN_THE_WHEEL", tmp_path / "nowhere")
    for name in ("VOVNET_OPS", "VOVNET_ISA", "LOCAL_RANK", "CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("_loaded", None), ("_loaded_cpu", None), ("_failures", {}), ("_warned", set())):
        monkeypatch.setattr(loader, name, value)


@pytest.fixture
def tiny(nothing_built: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    """A library of one small kernel in place of ours, and an empty cache."""
    folder = tmp_path / "sources"
    folder.mkdir()
    (folder / "tiny.cu").write_text(TINY)
    library = Library("tiny", folder)
    monkeypatch.setattr(loader, "CUDA", library)
    return library


@pytest.fixture
def standin(nothing_built: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Library:
    """A library for the CPU in place of ours, whose ``compiled_in`` lists its instruction sets, and an empty cache."""
    folder = tmp_path / "cpu-sources"
    folder.mkdir()
    (folder / "table.cpp").write_text(STANDIN)
    for name in sources.INSTRUCTION_SETS:
        check = f"#ifndef {MACROS[name]}\n#error flags\n#endif\n" if name in MACROS else ""
        (folder / f"isa_{name}.cpp").write_text(f'{check}const char* {name}() {{ return "{name}"; }}\n')
    library = Library("standin", folder)
    for module in (loader, sources):
        monkeypatch.setattr(module, "CPU", library)
    return library


@pytest.fixture
def cxx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Callable[[], list[str]]]:
    """``cxx("exit 2")`` replaces g++ by a script, which has g++'s path as ``$real``; it returns a list of the runs."""

    def install(script: str) -> Callable[[], list[str]]:
        real = shutil.which("g++")
        if real is None:
            pytest.skip("needs g++ on PATH")
        log, path = tmp_path / "cxx-runs", tmp_path / "cxx"
        log.touch()
        path.write_text(f'#!/bin/sh\nreal={real}\necho "$@" >>{log}\n{script}\n')
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("CXX", str(path))
        return lambda: log.read_text().splitlines()

    return install


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """``gpus((8, 0), (7, 0))`` simulates a machine with these GPUs."""

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
    """``compiler("exit 2")`` replaces nvcc by a script; its ``runs()`` lists the compilations."""

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
    """Simulate a machine without CUDA's compiler."""
    folder = tmp_path / "path"
    folder.mkdir()
    for name in ("g++", "sh"):
        if found := shutil.which(name):
            (folder / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(toolchain, "USUAL_NVCC", str(tmp_path / "nowhere"))


@pytest.fixture
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """``no_waiting(step)`` calls ``step`` instead of every pause."""

    def instead(step: Callable[[], object]) -> None:
        monkeypatch.setattr(cache, "_pause", step)

    return instead


@pytest.fixture
def compiler_runs(compilers: None, compiler: Callable[..., SimpleNamespace]) -> Callable[[], list[str]]:
    """Return how often the real nvcc was run."""
    return compiler(f'exec {shutil.which("nvcc")} "$@"').runs
