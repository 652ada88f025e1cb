"""The command with which a stopped run goes on: the one that started it, with ``--resume``."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

_MODULE = "vovnet.detection.train"


def how_to_resume(output: Path) -> str:
    """Return what the user does to continue the run in ``output``, as a part of a sentence."""
    main = getattr(sys.modules.get("__main__"), "__spec__", None)
    if main is not None and main.name == f"{_MODULE}.__main__":
        return _again(_launcher(), sys.argv[1:])
    name = Path(sys.argv[0]).name.removesuffix(".exe")
    if name == "vovnet" or (main is not None and main.name == "vovnet.cli.__main__"):
        program = [_short(sys.argv[0])] if name == "vovnet" else [*_interpreter(), "-m", "vovnet.cli"]
        if sys.argv[1:2] == ["train"]:
            return _again([*program, "train"], sys.argv[2:])
        # Another command that trains, such as `vovnet quickstart`, cannot resume; its run can be.
        return _again([*program, "train"], [str(output / "recipe.yaml"), "--output", str(output)])
    return f"go on with: train(recipe, {str(output)!r}, resume=True) and the same other arguments"


def _again(program: Sequence[str], arguments: Sequence[str]) -> str:
    """Return the command with ``--resume``, unless it has ``--auto-resume`` and thus can be repeated as it is."""
    kept = [argument for argument in arguments if argument not in ("--overwrite", "--resume")]
    resume = [] if "--auto-resume" in kept else ["--resume"]
    lead = "go on with" if resume else "go on with the same command"
    return f"{lead}: {shlex.join([*program, *kept, *resume])}"


def _launcher() -> list[str]:
    """Return the command up to and with the module's name: torchrun's, or that of a process without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return [*_interpreter(), "-m", _MODULE]
    launcher = _command_of(os.getppid())
    if _MODULE in launcher:
        launcher = launcher[: launcher.index(_MODULE) + 1]
        script = next((i for i, word in enumerate(launcher) if Path(word).name == "torchrun"), 0)
        return [_short(launcher[script]), *launcher[script + 1 :]]
    # Without /proc the launcher's own options are unknown, but for the number of processes.
    return ["torchrun", "--nproc-per-node", os.environ.get("LOCAL_WORLD_SIZE", "1"), "-m", _MODULE]


def _command_of(process: int) -> list[str]:
    """Return the command line of a process; empty where the system does not tell."""
    try:
        words = Path(f"/proc/{process}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return []
    return [os.fsdecode(word) for word in words[:-1]]


def _interpreter() -> list[str]:
    """Return Python and its own options, as they stand before ``-m``."""
    before = sys.orig_argv[: sys.orig_argv.index("-m")] if "-m" in sys.orig_argv else [sys.executable]
    return [_short(before[0]), *before[1:]]


def _short(program: str) -> str:
    """Return a program's name alone if the shell finds the same file by it."""
    found = shutil.which(Path(program).name)
    return Path(program).name if found and Path(found).resolve() == Path(program).resolve() else program
