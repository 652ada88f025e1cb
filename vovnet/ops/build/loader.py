"""Decides whether there are compiled operators, and builds and loads them when they are first needed.

``VOVNET_OPS`` says how: ``auto`` (the default) falls back to the reference with one warning when they cannot be had,
``off`` never asks for them, ``require`` makes it an error. The first tensor on a GPU asks by :func:`available`. Tensors
on the CPU start nothing: there :func:`cpu_operators` is for whoever has been asked to make a model fast.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import get_worker_info

from vovnet.errors import InputError, reason
from vovnet.ops.build.cache import build_once, cache_root, find_build, find_builds, find_exact
from vovnet.ops.build.compiler import Build
from vovnet.ops.build.sources import (
    CPU,
    CUDA,
    NO_GPU,
    OLDEST,
    OPTIONAL,
    Library,
    Targets,
    targets_for,
)
from vovnet.ops.build.toolchain import BuildError

MODES = ("auto", "off", "require")
ISAS = ("plain", "avx2", "avx512")
"""What ``VOVNET_ISA`` can lower the CPU operators' instruction set to, ascending."""
CPUINFO = Path("/proc/cpuinfo")

_lock = threading.Lock()
_loaded: Build | None = None
_loaded_cpu: Build | None = None
_failures: dict[int | str | None, str] = {}
"""Why there are no operators, for a GPU, for all GPUs (None) or for the CPU ("cpu"): asked once, for the compilers are
slow to fail."""
_warned: set[str] = set()


def _unlock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock)  # a thread that builds in the parent holds it, and is not in the child


def mode() -> str:
    """``VOVNET_OPS``.

    Raises:
        InputError: for an unknown value.
    """
    return _chosen("VOVNET_OPS", MODES, "auto")


def _chosen(variable: str, values: tuple[str, ...], default: str) -> str:
    value = os.environ.get(variable) or default
    if value not in values:
        raise InputError(f"{variable}='{value}': expected one of {', '.join(values)}")
    return value


def available(device: torch.device) -> bool:
    """Whether ``torch.ops.vovnet._cuda_*`` serve tensors on ``device``; the first call may build and load them.

    Returns:
        False for a device other than CUDA, with ``VOVNET_OPS=off``, and, after one warning that gives the cause and
        the mend, where ``auto`` finds that they cannot be had. True means that they are loaded; which tensors they take
        is for ``_cuda_supported`` to say.

    Raises:
        InputError: for an unknown ``VOVNET_OPS``.
        BuildError: a RuntimeError, where ``VOVNET_OPS=require`` and they cannot be had.
    """
    wanted = mode()
    if wanted == "off" or device.type != "cuda":
        return False
    index = torch.cuda.current_device() if device.index is None else device.index
    return _obtain(wanted, lambda: _ensure(index))


def cpu_operators() -> bool:
    """Whether the compiled operators for the CPU are loaded; the first call may build and load them.

    Only who was asked for a fast model may call this, as ``vovnet.fuse``: a compiler may start, for some seconds.

    Returns:
        True means that ``torch.ops.vovnet`` runs compiled kernels for tensors on the CPU from now on. False with
        ``VOVNET_OPS=off``, and, after one warning that gives the cause and the mend, where ``auto`` finds that they
        cannot be had. A DataLoader's worker loads what is built, and builds nothing.

    Raises:
        InputError: for an unknown ``VOVNET_OPS`` or ``VOVNET_ISA``.
        BuildError: a RuntimeError, where ``VOVNET_OPS=require`` and they cannot be had.
    """
    wanted = mode()
    _chosen("VOVNET_ISA", ISAS, ISAS[-1])
    return wanted != "off" and _obtain(wanted, _ensure_cpu)


def capability(device: torch.device) -> int:
    """A CUDA device's compute capability as the operators take it: 75, 80, 90, 120."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _obtain(wanted: str, ensure: Callable[[], None]) -> bool:
    """Whether ``ensure`` succeeds; its BuildError becomes what ``VOVNET_OPS`` wants: an error, or one warning."""
    try:
        ensure()
    except BuildError as error:
        if wanted == "require":
            raise BuildError(f"VOVNET_OPS=require, but there are no compiled operators: {error}") from error
        cause = str(error)
        if cause not in _warned:
            _warned.add(cause)
            warnings.warn(
                f"vovnet's operators run as plain PyTorch: {cause}. VOVNET_OPS=off does so silently.", stacklevel=4
            )
        return False
    return True


def _ensure_cpu() -> None:
    """Make the CPU operators loaded, or raise a BuildError, the same each time."""
    global _loaded_cpu
    if _loaded_cpu is not None:
        return
    with _lock:
        if "cpu" not in _failures and _loaded_cpu is None:
            try:
                build = find_exact(CPU, NO_GPU) or _build_here(CPU, NO_GPU, "python -m vovnet.ops.build")
                _loaded_cpu = _open(build)
            except BuildError as error:
                _failures["cpu"] = str(error)
        cause = _failures.get("cpu")
    if cause is not None:
        raise BuildError(cause)


def _ensure(index: int) -> None:
    """Make the operators loaded for a device, or raise a BuildError, the same each time."""
    cause = _failures.get(None) or _failures.get(index)
    if cause is None:
        if _loaded is not None and _loaded.targets.serve(torch.cuda.get_device_capability(index)):
            return
        with _lock:
            try:
                _check_age(index)
                _load(index)
                return
            except BuildError as error:
                cause = _failures.setdefault(index if _loaded is not None or _is_old(index) else None, str(error))
    raise BuildError(cause)


def _is_old(index: int) -> bool:
    return torch.cuda.get_device_capability(index) < OLDEST


def _check_age(index: int) -> None:
    if _is_old(index):
        major, minor = torch.cuda.get_device_capability(index)
        raise BuildError(
            f"cuda:{index} has compute capability {major}.{minor}, the operators need {OLDEST[0]}.{OLDEST[1]} or later"
        )


def _load(index: int) -> None:
    """Load what is built for the GPUs of this machine, building it first where a build may start."""
    global _loaded
    own = torch.cuda.get_device_capability(index)
    if _loaded is not None:
        if _loaded.targets.serve(own):
            return
        raise BuildError(
            f"the library that is loaded is built for {_loaded.targets} and does not serve cuda:{index} ({own[0]}."
            f"{own[1]}): start anew, or build for all GPUs ahead of time (python -m vovnet.ops.build --cuda)"
        )
    present = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())} | {own}
    usable = {found for found in present if found >= OLDEST}
    build = find_build(CUDA, usable) or _build_here(CUDA, targets_for(usable), "python -m vovnet.ops.build --cuda")
    _loaded = _open(build)


def _build_here(library: Library, targets: Targets, command: str) -> Build:
    """Build in this process, if it may: ``command`` is what the user is told to run where it may not."""
    if get_worker_info() is not None:
        raise BuildError(f"nothing is compiled in a DataLoader worker: build ahead of time ({command})")
    return build_once(library, targets)


def _open(build: Build) -> Build:
    try:
        torch.ops.load_library(str(build.path))
    except (OSError, RuntimeError) as error:
        raise BuildError(f"{build.path} cannot be loaded ({reason(error)}): remove {build.path.parent}") from error
    return build


def state() -> list[tuple[str, str]]:
    """Names and values for ``vovnet env``: what is set, what is built and for what; nothing is compiled or loaded."""
    value = os.environ.get("VOVNET_OPS")
    note = "" if value in (None, "", *MODES) else f" (unknown: expected one of {', '.join(MODES)})"
    rows = [("VOVNET_OPS", f"{value or 'auto (the default)'}{note}")]
    root = cache_root()
    rows.append(("cache folder", f"{root}{'' if root.is_dir() else ' (not there yet)'}"))
    return [
        *rows,
        ("CPU operators", _standing(CPU)),
        ("CPU instruction set", _instruction_set()),
        ("CUDA operators", _standing(CUDA)),
    ]


def _standing(library: Library) -> str:
    try:
        builds = find_builds(library)
    except BuildError as error:
        return f"cannot be built: {error}"
    without = {name for build in builds for name in build.left_out}
    note = f", without {', '.join(sorted(without))}, which the compiler did not know" if without else ""
    return f"built for {'; '.join(build.targets.words for build in builds)}{note}" if builds else "not built"


def _instruction_set() -> str:
    """The one that the CPU operators use on this machine, and why: the processor, or ``VOVNET_ISA``."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "not known here: no /proc/cpuinfo"
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    widest = CPU.widest_instruction_set(set(flags))
    best = "avx512" if widest == OPTIONAL else widest
    note = " with bfloat16 products" if widest == OPTIONAL else ""
    try:
        asked = _chosen("VOVNET_ISA", ISAS, ISAS[-1])
    except InputError as error:
        return str(error)
    if ISAS.index(asked) < ISAS.index(best):
        return f"{asked} by VOVNET_ISA; the processor has {best}{note}"
    return f"{best}{note}"
