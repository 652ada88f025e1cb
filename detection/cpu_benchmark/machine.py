"""Describe the machine, and give every backend the same kind of memory pages."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import torch

from vovnet import environment

PACKAGES = ("vovnet", "torch", "torchvision", "timm", "onnxruntime", "openvino", "onnx", "nncf")
_THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_TUNABLE = "glibc.malloc.hugetlb=1"


def huge_page_mode(setting: Path = _THP) -> str:
    """Return the kernel's setting for transparent huge pages: ``always``, ``madvise``, ``never`` or ``unknown``."""
    try:
        chosen = re.search(r"\[(\w+)\]", setting.read_text(encoding="utf-8"))
    except OSError:
        return "unknown"
    return chosen.group(1) if chosen else "unknown"


def with_huge_pages(variables: Mapping[str, str]) -> dict[str, str]:
    """Return environment variables that make PyTorch's and glibc's allocators ask for huge pages."""
    tunables = variables.get("GLIBC_TUNABLES", "")
    if "glibc.malloc.hugetlb=" not in tunables:
        tunables = f"{tunables}:{_TUNABLE}" if tunables else _TUNABLE
    return {**variables, "THP_MEM_ALLOC_ENABLE": "1", "GLIBC_TUNABLES": tunables}


def restart_with_huge_pages(variables: MutableMapping[str, str] = os.environ) -> None:
    """Restart this command in this process with the variables of :func:`with_huge_pages`.

    Both allocators read their variables once, before our code runs. This does nothing if the kernel gives huge pages to
    every process or to none, or if the variables are set already.
    """
    wanted = with_huge_pages(variables)
    if huge_page_mode() != "madvise" or all(variables.get(name) == value for name, value in wanted.items()):
        return
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)


def describe_machine() -> dict[str, Any]:
    """Return versions, processor, instruction sets, threads and page size by their names in the report."""
    return {
        "threads": torch.get_num_threads(),
        "PyTorch's instruction set": torch.backends.cpu.get_cpu_capability(),
        "vovnet's instruction set": _our_instruction_set(),
        "huge pages": _huge_pages(),
        **environment.describe_machine(*PACKAGES),
    }


def load_average() -> float | None:
    """Return the load average of the last minute, or None if the system does not provide it."""
    return round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None


def _our_instruction_set() -> str:
    try:
        return str(torch.ops.vovnet._cpu_instruction_set())
    except (AttributeError, RuntimeError):  # no such operator, or none for the CPU
        return "kernels not loaded"


def _huge_pages() -> str:
    mode = huge_page_mode()
    if mode != "madvise":
        return {"always": "for all", "never": "for none"}.get(mode, mode)
    wanted = with_huge_pages(os.environ)
    asked = [name for name in ("THP_MEM_ALLOC_ENABLE", "GLIBC_TUNABLES") if os.environ.get(name) == wanted[name]]
    return "for all" if len(asked) == 2 else f"only by {asked[0]}" if asked else "for none"
