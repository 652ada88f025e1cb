"""Operators that were compiled before they were installed: they need no compiler.

The wheel for Linux on x86-64 has those for the CPU, in ``vovnet/ops/prebuilt``; the distribution ``vovnet-cuda13`` has
those for GPUs. Both are laid out like the cache of :mod:`vovnet.ops.build.cache`. A library is taken only if it was
built from the sources that are installed.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from vovnet.ops.build.cache import find_build, find_exact
from vovnet.ops.build.compiler import Build
from vovnet.ops.build.sources import NO_GPU, Library
from vovnet.ops.build.toolchain import cuda_major

IN_THE_WHEEL = Path(__file__).resolve().parents[1] / "prebuilt"
"""The folder of the libraries that this installation came with. It is not there in a checkout."""


CUDA_MAJOR = 13
"""The major release of CUDA that there is a distribution for."""


def distribution_for(major: int) -> str:
    """Return the name of the distribution with the kernels for a major release of CUDA."""
    return f"vovnet-cuda{major}"


def prebuilt_root(library: Library) -> Path | None:
    """Return the folder of a library's installed builds, or None if none are installed.

    Raises:
        BuildError: the installed PyTorch cannot use the library.
    """
    major = cuda_major(library)
    if major is None:
        return IN_THE_WHEEL if IN_THE_WHEEL.is_dir() else None
    spec = importlib.util.find_spec(distribution_for(major).replace("-", "_"))
    places = [] if spec is None else list(spec.submodule_search_locations or [])
    return Path(places[0]) if places else None


def find_prebuilt(library: Library, capabilities: set[tuple[int, int]] | None = None) -> Build | None:
    """Return the installed build for the CPU, or for all of these GPUs, or None.

    Raises:
        BuildError: the installed PyTorch cannot use the library.
    """
    root = prebuilt_root(library)
    if root is None:
        return None
    if capabilities is None:
        return find_exact(library, NO_GPU, root)
    return find_build(library, capabilities, root)


def why_none(library: Library) -> str:
    """Return why :func:`find_prebuilt` finds nothing.

    Raises:
        BuildError: the installed PyTorch cannot use the library.
    """
    root, major = prebuilt_root(library), cuda_major(library)
    if root is not None:
        wheel = "vovnet" if major is None else distribution_for(major)
        return f"the ones in {root} were built from other sources: install the {wheel} of this version"
    if major is None:
        return "none came with this installation; the wheel for Linux on x86-64 has them"
    if major != CUDA_MAJOR:
        return f"ready-made ones are for CUDA {CUDA_MAJOR}, PyTorch is for CUDA {major}"
    return f"{distribution_for(major)}, which has them, is not installed"
