"""Load the compiled operators when they are first needed: those that are installed, or else a build of this machine.

``VOVNET_OPS`` controls this. With ``auto`` (the default) a failure leads to one warning and the reference, with ``off``
nothing is compiled or loaded, and with ``require`` a failure is an error. The first tensor on a GPU calls
:func:`available`. CPU tensors alone start nothing; functions that make a model fast call :func:`cpu_operators`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.data import get_worker_info

from vovnet.errors import InputError, reason
from vovnet.ops.build.cache import build_once, cache_root, find_build, find_builds, find_exact
from vovnet.ops.build.compiler import Build
from vovnet.ops.build.prebuilt import find_prebuilt, why_none
from vovnet.ops.build.sources import CPU, CUDA, NO_GPU, OLDEST, OPTIONAL, Library, Targets, targets_for
from vovnet.ops.build.toolchain import BuildError
from vovnet.processes import ForkSafeLock

MODES = ("auto", "off", "require")
ISAS = ("plain", "avx2", "avx512")
"""The values of ``VOVNET_ISA``, the highest instruction set that the CPU operators may use, in ascending order."""
CPUINFO = Path("/proc/cpuinfo")

_lock = ForkSafeLock()
_loaded: Build | None = None
_loaded_cpu: Build | None = None
_failures: dict[int | str | None, str] = {}
"""Index of a GPU, None for all GPUs, or "cpu" → why there are no operators. Kept because failing compilers are slow."""
_warned: set[str] = set()


def mode() -> str:
    """Return ``VOVNET_OPS``.

    Raises:
        InputError: its value is unknown.
    """
    return _chosen("VOVNET_OPS", MODES, "auto")


def _chosen(variable: str, values: tuple[str, ...], default: str) -> str:
    value = os.environ.get(variable) or default
    if value not in values:
        raise InputError(f"{variable}='{value}': expected one of {', '.join(values)}")
    return value


def available(device: torch.device) -> bool:
    """True if ``torch.ops.vovnet._cuda_*`` are loaded for ``device``; the first call may build and load them.

    Returns:
        False for a device other than CUDA and with ``VOVNET_OPS=off``. With ``auto`` it is also False if the operators
        cannot be built or loaded; one warning then gives the cause and how to mend it. If it is True,
        ``_cuda_supported`` says which tensors the operators take.

    Raises:
        InputError: the value of ``VOVNET_OPS`` is unknown.
        BuildError: a RuntimeError: ``VOVNET_OPS=require``, and the operators cannot be built or loaded.
    """
    wanted = mode()
    if wanted == "off" or device.type != "cuda":
        return False
    index = torch.cuda.current_device() if device.index is None else device.index
    return _obtain(wanted, lambda: _ensure(index))


def cpu_operators() -> bool:
    """True if the compiled operators for the CPU are loaded; the first call may build and load them.

    A compiler may run for some seconds, so only functions that are asked for a fast model call this, such as
    ``vovnet.fuse``.

    Returns:
        If it is True, ``torch.ops.vovnet`` runs compiled kernels for CPU tensors from now on. It is False with
        ``VOVNET_OPS=off``. With ``auto`` it is also False if the operators cannot be built or loaded; one warning then
        gives the cause and how to mend it. A DataLoader worker loads an existing build, but builds nothing.

    Raises:
        InputError: the value of ``VOVNET_OPS`` or ``VOVNET_ISA`` is unknown.
        BuildError: a RuntimeError: ``VOVNET_OPS=require``, and the operators cannot be built or loaded.
    """
    wanted = mode()
    _chosen("VOVNET_ISA", ISAS, ISAS[-1])
    return wanted != "off" and _obtain(wanted, _ensure_cpu)


def capability(device: torch.device) -> int:
    """Return a CUDA device's compute capability as the operators take it: 75, 80, 90, 120."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _obtain(wanted: str, ensure: Callable[[], None]) -> bool:
    """True if ``ensure`` succeeds. Its BuildError becomes an error or one warning, according to ``VOVNET_OPS``."""
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
    """Load the CPU operators, or raise a BuildError, the same in every call."""
    global _loaded_cpu
    if _loaded_cpu is not None:
        return
    with _lock:
        if "cpu" not in _failures and _loaded_cpu is None:
            try:
                _loaded_cpu = _open_first(
                    find_prebuilt(CPU),
                    lambda: find_exact(CPU, NO_GPU) or _build_here(CPU, NO_GPU, "python -m vovnet.ops.build"),
                )
            except BuildError as error:
                _failures["cpu"] = str(error)
        cause = _failures.get("cpu")
    if cause is not None:
        raise BuildError(cause)


def _ensure(index: int) -> None:
    """Load the operators for a device, or raise a BuildError, the same in every call."""
    cause = _failures.get(None) or _failures.get(index)
    if cause is None:
        if _loaded is not None and _loaded.targets.serve(torch.cuda.get_device_capability(index)):
            return
        with _lock:
            try:
                _load(index)
                return
            except BuildError as error:
                alone = _loaded is not None or torch.cuda.get_device_capability(index) < OLDEST
                cause = _failures.setdefault(index if alone else None, str(error))
    raise BuildError(cause)


def _load(index: int) -> None:
    """Load the build for the GPUs of this machine; build it first if this process may."""
    global _loaded
    own = torch.cuda.get_device_capability(index)
    if own < OLDEST:
        needed = f"the operators need {OLDEST[0]}.{OLDEST[1]} or later"
        raise BuildError(f"cuda:{index} has compute capability {own[0]}.{own[1]}; {needed}")
    if _loaded is not None:
        if _loaded.targets.serve(own):
            return
        raise BuildError(
            f"the loaded library is built for {_loaded.targets} and does not support cuda:{index} ({own[0]}."
            f"{own[1]}): restart the process, or build for all GPUs ahead of time (python -m vovnet.ops.build --cuda)"
        )
    present = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())} | {own}
    usable = {found for found in present if found >= OLDEST}
    _loaded = _open_first(
        find_prebuilt(CUDA, usable),
        lambda: find_build(CUDA, usable) or _build_here(CUDA, targets_for(usable), "python -m vovnet.ops.build --cuda"),
    )


def _build_here(library: Library, targets: Targets, command: str) -> Build:
    """Build in this process, if it may; otherwise the error tells the user to run ``command``."""
    if get_worker_info() is not None:
        raise BuildError(f"nothing is compiled in a DataLoader worker: build ahead of time ({command})")
    return build_once(library, targets)


def _open_first(prebuilt: Build | None, own: Callable[[], Build]) -> Build:
    """Load the library that is installed, or else this machine's own; return the one that was loaded."""
    if prebuilt is None:
        return _open(own())
    try:
        return _open(prebuilt, "install it again, with a PyTorch that it fits")
    except BuildError as refusal:
        try:
            return _open(own())
        except BuildError as error:
            raise BuildError(f"{refusal}; {error}") from error


def _open(build: Build, mend: str | None = None) -> Build:
    try:
        torch.ops.load_library(str(build.path))
    except (OSError, RuntimeError) as error:
        mend = mend or f"remove {build.path.parent}"
        raise BuildError(f"{build.path} cannot be loaded ({reason(error)}): {mend}") from error
    return build


def state() -> list[tuple[str, str]]:
    """Return names and values for ``vovnet env``: settings and builds. Nothing is compiled or loaded."""
    value = os.environ.get("VOVNET_OPS")
    note = "" if value in (None, "", *MODES) else f" (unknown: expected one of {', '.join(MODES)})"
    root = cache_root()
    return [
        ("VOVNET_OPS", f"{value or 'auto (the default)'}{note}"),
        ("cache folder", f"{root}{'' if root.is_dir() else ' (not there yet)'}"),
        ("CPU operators", _standing(CPU)),
        ("CPU instruction set", _instruction_set()),
        ("CUDA operators", _standing(CUDA)),
    ]


def _standing(library: Library) -> str:
    """Return which operators run here, in the order in which they are looked for, and why not those before them."""
    if os.environ.get("VOVNET_OPS") == "off":
        return "plain PyTorch: VOVNET_OPS is off"
    try:
        found = find_prebuilt(library, set() if library.uses_cuda else None)
        if found is not None:
            return f"installed, for {found.targets.words}: {found.path.parent}"
        builds, why = find_builds(library), why_none(library)
    except BuildError as error:
        return f"plain PyTorch: {error}"
    if not builds:
        return f"not built yet ({why})"
    without = {name for build in builds for name in build.left_out}
    note = f", without {', '.join(sorted(without))}, which the compiler did not know" if without else ""
    return f"built for {'; '.join(build.targets.words for build in builds)}{note} ({why})"


def _instruction_set() -> str:
    """Return the instruction set that the CPU operators use here, and whether ``VOVNET_ISA`` has lowered it."""
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
