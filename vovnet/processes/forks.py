"""Forks: a child of a process that has used PyTorch can use it, too.

PyTorch computes with OpenMP's threads. GNU's runtime, which PyTorch's wheels for Linux contain, keeps them in a pool.
A child inherits the pool without the threads, and its first parallel computation waits for them forever. A thread that
forks therefore frees its pool before it does. Parent and child start new threads when they compute, as many as before.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import torch

_PAUSE_SOFT = 1  # omp_pause_soft of OpenMP 5.0: the settings, such as the number of threads, stay
_FORKED_WITHOUT_EXEC = 0x40  # Linux's PF_FORKNOEXEC

_freed: set[int] = set()
"""Identifiers of the threads that are about to fork and have no OpenMP threads that the child would miss."""
_process: int | None = None
"""The process that the next two variables are about; None before :func:`handle_forks`."""
_has_its_threads: bool | None = None
"""False in a child of a thread that did not free its OpenMP threads; None if that is not known yet."""
_warned = False


def handle_forks() -> None:
    """Register what happens at each ``os.fork`` from now on. Nothing happens where the system cannot fork."""
    global _process
    if _process is None and hasattr(os, "register_at_fork"):
        _process = os.getpid()
        os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=_after_in_child)


def _before_fork() -> None:
    if _survives_forks() or (_may_free_threads() and _free_threads()):
        _freed.add(threading.get_ident())


def _after_in_parent() -> None:
    global _warned
    if threading.get_ident() not in _freed:
        _warned = True  # by this child, so that others need not repeat it
    _freed.discard(threading.get_ident())


def _after_in_child() -> None:
    global _process, _has_its_threads, _warned
    # A C program, such as uWSGI, forks without the first function.
    _process, _has_its_threads = os.getpid(), threading.get_ident() in _freed
    _freed.clear()
    atexit.unregister(_replace_thread_pool)  # a child's child has the registration, too
    atexit.register(_replace_thread_pool)
    if _has_its_threads or torch.get_num_threads() == 1:
        return
    torch.set_num_threads(1)
    if not _warned:
        _warned = True
        warnings.warn(
            "PyTorch computes on one thread in this forked process, because its OpenMP runtime cannot start new ones "
            "here; processes started by 'spawn' or 'forkserver' have all threads",
            RuntimeWarning,
            stacklevel=2,
        )


def _replace_thread_pool() -> None:
    """Let PyTorch replace its other pool, of XNNPACK, whose destructor would wait for the parent's threads."""
    torch.set_num_threads(torch.get_num_threads())


def _free_threads() -> bool:
    """Free the OpenMP threads of this thread; True if it has none now."""
    pause = _runtime_function("omp_pause_resource_all")
    return pause is not None and pause(_PAUSE_SOFT) == 0


def _may_free_threads() -> bool:
    """False if the OpenMP threads may not exist, because a fork was not seen: to free them would then take forever."""
    global _has_its_threads
    if _process != os.getpid():
        return False
    if _has_its_threads is None:
        _has_its_threads = not _is_forked()
    return _has_its_threads


def _is_forked() -> bool:
    """True if Linux says that this process was forked and has not started another program since."""
    try:
        fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return bool(int(fields[6]) & _FORKED_WITHOUT_EXEC)
    except (OSError, IndexError, ValueError):  # another system
        return False


@functools.cache
def _survives_forks() -> bool:
    """True if the OpenMP runtime makes new threads in a child by itself, as LLVM's and Intel's do."""
    return _runtime_function("kmp_get_blocktime") is not None


@functools.cache
def _runtime_function(name: str) -> Callable[[int], int] | None:
    """Return a function of the OpenMP runtime that PyTorch uses, or None if it has none of that name."""
    libraries: list[str | None] = [None]  # all global symbols: a runtime of LD_PRELOAD comes first, as for PyTorch
    libraries += [str(path) for path in (Path(torch.__file__).parent / "lib").glob("libtorch_cpu.*")]
    for library in libraries:
        try:
            function: Callable[[int], int] = getattr(ctypes.CDLL(library), name)
        except (OSError, AttributeError):
            continue
        return function
    return None
