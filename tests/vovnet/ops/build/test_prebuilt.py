"""Operators that are installed ready-made: they are taken first, and only if they fit."""

from __future__ import annotations

import importlib
import platform
import sys
import warnings
from pathlib import Path

import pytest
import torch
from native_answers import answers_of_a_worker, one_warning, required

from vovnet.ops.build import loader, prebuilt
from vovnet.ops.build.cache import build_once, cache_root, find_builds
from vovnet.ops.build.loader import available, cpu_operators
from vovnet.ops.build.prebuilt import distribution_for, find_prebuilt
from vovnet.ops.build.sources import CUDA, NO_GPU, Library, Targets
from vovnet.ops.shipping.portable import add_to_root

on_linux = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="needs Linux on an x86-64 processor"
)
pytestmark = on_linux


@pytest.fixture
def installed(standin: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in for our library, installed ready-made; returns its file. There is no compiler any more."""
    root = tmp_path / "prebuilt"
    build = add_to_root(standin, NO_GPU, root)
    monkeypatch.setattr(prebuilt, "IN_THE_WHEEL", root)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return build.path


def cpu_row() -> str:
    return dict(loader.state())["CPU operators"]


def test_what_is_installed_needs_no_compiler_and_no_cache(installed, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert cpu_operators()
    assert loader._loaded_cpu is not None
    assert loader._loaded_cpu.path == installed
    assert capfd.readouterr().err == ""
    assert not cache_root().exists()


def test_what_is_installed_goes_before_what_was_built_here(standin, tmp_path, monkeypatch):
    build_once(standin, NO_GPU)
    own = cpu_row()
    assert own.startswith("built for every")
    assert "none came with this installation" in own
    build = add_to_root(standin, NO_GPU, tmp_path / "prebuilt")
    monkeypatch.setattr(prebuilt, "IN_THE_WHEEL", tmp_path / "prebuilt")
    assert cpu_row() == f"installed, for every {platform.machine()} processor: {build.path.parent}"
    assert cpu_operators()
    assert loader._loaded_cpu is not None
    assert loader._loaded_cpu.path == build.path


def test_what_was_built_from_other_sources_is_left(installed, standin, monkeypatch):
    (standin.folder / "new.h").write_text("\n")
    assert find_prebuilt(standin) is None
    assert cpu_row().startswith(f"not built yet (the ones in {installed.parents[2]} were built from other sources")
    one_warning(cpu_operators, "no C++ compiler")


def test_a_library_that_the_system_refuses(installed, standin, monkeypatch):
    """It is replaced by a build of this machine; if there can be none, one warning has both causes."""
    installed.write_bytes(b"not a library")
    one_warning(cpu_operators, str(installed), "cannot be loaded", "install it again", "no C++ compiler")
    required(monkeypatch, cpu_operators, "install it again", "no C++ compiler")
    monkeypatch.setenv("PATH", "/usr/local/bin:/usr/bin:/bin")
    monkeypatch.setenv("VOVNET_OPS", "auto")
    monkeypatch.setattr(loader, "_failures", {})
    assert cpu_operators()
    assert [loader._loaded_cpu] == find_builds(standin)


def test_an_older_torch_than_the_operators_need(installed, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.9.1")
    assert "PyTorch 2.10 or later is needed, got 2.9.1" in cpu_row()
    assert cpu_row().startswith("plain PyTorch")
    one_warning(cpu_operators, "2.10 or later", "2.9.1", "pip install -U torch")


def test_off_is_shown(installed, monkeypatch):
    monkeypatch.setenv("VOVNET_OPS", "off")
    assert cpu_row() == "plain PyTorch: VOVNET_OPS is off"
    assert not cpu_operators()
    assert loader._loaded_cpu is None


def test_a_worker_loads_what_is_installed(installed):
    assert answers_of_a_worker(cpu_operators) == [(True, ""), (True, "")]


@pytest.fixture
def distribution(tiny: Library, compilers: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in for the CUDA kernels in a distribution of its own, as ``vovnet-cuda13``; returns its package."""
    major = int((torch.version.cuda or "13").partition(".")[0])
    package = tmp_path / "site" / distribution_for(major).replace("-", "_")
    add_to_root(tiny, Targets(("8.0", "9.0"), "9.0"), package)
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(package.parent)
    importlib.invalidate_caches()
    return package


def test_kernels_of_a_distribution_need_no_nvcc(distribution, gpus, request, capfd):
    capfd.readouterr()
    request.getfixturevalue("no_nvcc")
    gpus((8, 6), (9, 0))
    assert available(torch.device("cuda:0"))
    assert loader._loaded is not None
    assert loader._loaded.path.is_relative_to(distribution)
    assert capfd.readouterr().err == ""
    assert not cache_root().exists()
    assert dict(loader.state())["CUDA operators"].startswith("installed, for 8.0, 9.0 and PTX: ")


def test_a_gpu_that_the_distribution_has_no_code_for(distribution, gpus, request):
    request.getfixturevalue("no_nvcc")
    gpus((7, 5))
    one_warning(lambda: available(torch.device("cuda:0")), "no CUDA compiler")


def test_why_there_are_no_kernels(nothing_built, monkeypatch):
    for cuda, words in (("13.0", "vovnet-cuda13, which has them, is not installed"), ("12.8", "are for CUDA 13")):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        assert words in dict(loader.state())["CUDA operators"]
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in dict(loader.state())["CUDA operators"]
    assert CUDA.uses_cuda
