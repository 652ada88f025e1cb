"""Decides whether the compiled operators serve a GPU, and builds and loads them when they are first needed.

``VOVNET_OPS`` says how: ``auto`` (the default) falls back to the reference with one warning when they cannot be had,
``off`` never asks for them, ``require`` makes it an error. Tensors on the CPU have no compiled operators and start
nothing.
"""

from __future__ import annotations

import os
import threading
import warnings

import torch
from torch.utils.data import get_worker_info

from vovnet.errors import InputError, reason
from vovnet.ops.cache import build_once, cache_root, find_build, find_builds
from vovnet.ops.compiler import Build
from vovnet.ops.sources import CUDA, OLDEST, targets_for
from vovnet.ops.toolchain import BuildError

MODES = ("auto", "off", "require")

_lock = threading.Lock()
_loaded: Build | None = None
_failures: dict[int | None, str] = {}
"""Why there are no operators, for a device, or (None) for all: asked once, for the compilers are slow to fail."""
_warned: set[str] = set()


def mode() -> str:
    """``VOVNET_OPS``.

    Raises:
        InputError: for an unknown value.
    """
    value = os.environ.get("VOVNET_OPS") or "auto"
    if value not in MODES:
        raise InputError(f"VOVNET_OPS='{value}': expected one of {', '.join(MODES)}")
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
    try:
        _ensure(index)
    except BuildError as error:
        if wanted == "require":
            raise BuildError(f"VOVNET_OPS=require, but there are no compiled operators: {error}") from error
        _warn(str(error))
        return False
    return True


def capability(device: torch.device) -> int:
    """A CUDA device's compute capability as the operators take it: 75, 80, 90, 120."""
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _warn(cause: str) -> None:
    if cause not in _warned:
        _warned.add(cause)
        warnings.warn(
            f"vovnet's operators run as plain PyTorch: {cause}. VOVNET_OPS=off does so silently.", stacklevel=4
        )


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
    build = find_build(CUDA, usable)
    if build is None:
        if get_worker_info() is not None:
            raise BuildError(
                "nothing is compiled in a DataLoader worker: build ahead of time (python -m vovnet.ops.build --cuda)"
            )
        build = build_once(CUDA, targets_for(usable))
    try:
        torch.ops.load_library(str(build.path))
    except (OSError, RuntimeError) as error:
        raise BuildError(f"{build.path} cannot be loaded ({reason(error)}): remove {build.path.parent}") from error
    _loaded = build


def state() -> list[tuple[str, str]]:
    """Names and values for ``vovnet env``: what VOVNET_OPS is, and what is built; nothing is compiled or loaded."""
    value = os.environ.get("VOVNET_OPS")
    note = "" if value in (None, "", *MODES) else f" (unknown: expected one of {', '.join(MODES)})"
    rows = [("VOVNET_OPS", f"{value or 'auto (the default)'}{note}")]
    root = cache_root()
    rows.append(("cache folder", f"{root}{'' if root.is_dir() else ' (not there yet)'}"))
    try:
        builds = find_builds(CUDA)
    except BuildError as error:
        return [*rows, ("CUDA operators", f"cannot be built: {error}")]
    found = "; ".join(", ".join(build.targets.binary) + (" and PTX" if build.targets.ptx else "") for build in builds)
    return [*rows, ("CUDA operators", f"built for {found}" if found else "not built")]
