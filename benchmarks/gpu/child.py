"""The process of a section.

python -m benchmarks.gpu.child MODULE RECORDS SECONDS [--cpu]
"""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from benchmarks.gpu.setting import Setting
from benchmarks.gpu.steps import Step, run_steps


def main(arguments: Sequence[str]) -> int:
    """Run a section's steps; return the exit code."""
    _end_with_parent()
    module, path, seconds, *flags = arguments
    setting = Setting("--cpu" in flags, Path(path).parent)
    steps: list[Step] = import_module(module).steps(setting)
    return run_steps(steps, Path(path), float(seconds), setting.usable)


def _end_with_parent() -> None:
    """Let the system end this process if its parent is killed: the GPU would stay busy."""
    if sys.platform == "linux":
        set_death_signal = 1  # PR_SET_PDEATHSIG in linux/prctl.h
        ctypes.CDLL(None).prctl(set_death_signal, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
