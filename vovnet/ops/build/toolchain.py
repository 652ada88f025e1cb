"""Find what a build needs: a C++ compiler, Torch's headers and libraries, and for CUDA nvcc and its runtime library."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from vovnet.errors import StoppedError
from vovnet.ops.build.sources import Library

USUAL_NVCC = "/usr/local/cuda/bin/nvcc"


class BuildError(StoppedError, RuntimeError):
    """The operators cannot be built or loaded. The message is one line with the cause and how to mend it."""


@dataclass(frozen=True)
class CudaToolkit:
    """The additional tools of a build for CUDA."""

    nvcc: Path  # CUDA's compiler
    cudart: Path  # CUDA's runtime library of the major release that Torch was built for

    @classmethod
    def find(cls, major: int) -> CudaToolkit:
        """Find a toolkit of a major release, or raise a BuildError that names what is missing."""
        nvcc = _find_nvcc(major)
        _check_nvcc_release(nvcc, major)
        return cls(nvcc, _find_cudart(nvcc, major))


@dataclass(frozen=True)
class Toolchain:
    """Compilers and libraries for the installed Torch."""

    cxx: Path  # the C++ compiler; nvcc uses it, too
    torch: Path  # Torch's folder, with include and lib
    cuda: CudaToolkit | None  # None if the library does not need CUDA

    @classmethod
    def find(cls, library: Library) -> Toolchain:
        """Find what ``library`` needs, without compiling anything.

        Raises:
            BuildError: something is missing or does not fit; the message says what, and how to get it.
        """
        major = cuda_major(library)
        if sys.platform != "linux":
            raise BuildError(f"the operators can be compiled on Linux only, this is {sys.platform}")
        cuda = None if major is None else CudaToolkit.find(major)
        return cls(_find_cxx(), _torch_folder(), cuda)


def cuda_major(library: Library) -> int | None:
    """Return the installed Torch's major CUDA release, or None if ``library`` does not need CUDA.

    Raises:
        BuildError: the library needs CUDA and Torch has none, or Torch is too old.
    """
    if library.uses_cuda and torch.version.cuda is None:
        raise BuildError("the installed PyTorch is built without CUDA: install one with CUDA (https://pytorch.org)")
    found = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if found is None or (int(found[1]), int(found[2])) < library.torch:
        wanted = ".".join(map(str, library.torch))
        raise BuildError(f"PyTorch {wanted} or later is needed, got {torch.__version__}: pip install -U torch")
    return int(torch.version.cuda.partition(".")[0]) if library.uses_cuda and torch.version.cuda else None


def _torch_folder() -> Path:
    return Path(torch.__file__).resolve().parent


def _find_nvcc(major: int) -> Path:
    homes = [home for name in ("CUDA_HOME", "CUDA_PATH") if (home := os.environ.get(name))]
    for candidate in (*(str(Path(home) / "bin" / "nvcc") for home in homes), shutil.which("nvcc"), USUAL_NVCC):
        if candidate and os.access(candidate, os.X_OK):
            return Path(candidate)
    raise BuildError(
        f"no CUDA compiler: nvcc is neither in CUDA_HOME nor on PATH; install the CUDA toolkit {major}.x, or put its "
        "bin folder on PATH"
    )


def _check_nvcc_release(nvcc: Path, major: int) -> None:
    """Check the release: a library built for another major release would load a second CUDA runtime."""
    try:
        done = subprocess.run(
            [nvcc, "--version"], capture_output=True, text=True, errors="replace", timeout=60, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"{nvcc} cannot be run ({error}): install the CUDA toolkit {major}.x anew") from error
    release = re.search(r"release (\d+)\.(\d+)", done.stdout)
    if done.returncode != 0 or release is None:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise BuildError(
            f"{nvcc} --version failed ({said[0] if said else f'exit code {done.returncode}'}): install the CUDA "
            f"toolkit {major}.x anew"
        )
    if int(release[1]) != major:
        raise BuildError(
            f"{nvcc} belongs to CUDA {release[1]}.{release[2]}, but PyTorch is built for CUDA {torch.version.cuda}: "
            f"install the CUDA toolkit {major}.x and set CUDA_HOME to it, or install a PyTorch for CUDA {release[1]}"
        )


def _find_cxx() -> Path:
    for name in (os.environ.get("CXX"), "g++", "c++", "clang++"):
        if name and (path := shutil.which(name)):
            return Path(path)
    raise BuildError(
        "no C++ compiler: found neither CXX nor g++ nor clang++ on PATH; install one, for example with apt install g++"
    )


def _find_cudart(nvcc: Path, major: int) -> Path:
    """Return the runtime library that pip installed with Torch, or else the toolkit's; both have the same name."""
    name = f"libcudart.so.{major}"
    beside_torch = (_torch_folder().parent / "nvidia").glob(f"*/lib/{name}")
    toolkit = nvcc.resolve().parent.parent
    for path in (*beside_torch, toolkit / "lib64" / name, _torch_folder() / "lib" / name):
        if path.is_file():
            return path
    raise BuildError(f"{name} is neither beside PyTorch nor in {toolkit}: pip install nvidia-cuda-runtime")
