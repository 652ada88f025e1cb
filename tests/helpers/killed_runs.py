"""Kill runs at random moments, by SIGKILL: ``python killed_runs.py FOLDER KILLS SEED``, from the root of the checkout.

One process imports everything, and forks a child for each attempt. Each child counts the lines of the package that it
executes, and kills itself at a line that the seed has drawn, so that the moments do not depend on the machine's speed.
Writes have most of the lines that are counted. An attempt resumes what the attempt before it left. When a run comes to
its end, it is compared with a run that nobody killed, and the next one begins.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import matplotlib.backends.backend_agg  # noqa: F401 (so that the children need not import them)
import numpy as np
import torch
import torch.utils.tensorboard
from tiny_runs import Squares, assert_same_runs, short_recipe

from vovnet.detection.training.engine import train

COUNTED = ("detection/training/", "detection/checkpoints/folder.py", "detection/figures.py", "vovnet/files.py")
LOST = 10
"""The exit code of a child whose run raised an error."""


def life(output: Path, lines: Callable[[int], None]) -> None:
    """Train in this process; ``lines`` is called with the number of each counted line."""
    count = 0

    def local(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if event == "line":
            count += 1
            lines(count)
        return local

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        name = frame.f_code.co_filename
        return local if any(part in name for part in COUNTED) else None

    recipe = short_recipe(evaluate_every=2, checkpoint_every=3, max_iterations=7)
    random.seed(0)  # otherwise each process has its own state of it, which checkpoints contain
    np.random.seed(0)
    sys.settrace(trace)
    data: dict[str, Any] = {"train_dataset": Squares(), "val_dataset": Squares(), "progress": False}
    train(recipe, output, resume="auto", device="cpu", **data)
    sys.settrace(None)


def in_child(output: Path, kill_at: int, log: Path) -> tuple[int, int]:
    """Run an attempt in a forked child, which kills itself at a line; return its exit code and its lines."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        code, counted = LOST, 0

        def lines(number: int) -> None:
            nonlocal counted
            counted = number
            if number == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

        with contextlib.suppress(BaseException), log.open("a") as stderr:
            os.dup2(stderr.fileno(), 2)
            try:
                life(output, lines)
                code = 0
            except BaseException:
                import traceback

                traceback.print_exc()
        os.write(writer, str(counted).encode())
        os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), int(text or 0)


def text_of(log: Path) -> str:
    """Return the end of what the attempts wrote to stderr; nothing if a signal came before that."""
    return log.read_text()[-3000:] if log.exists() else "no log"


def main(folder: Path, kills: int, seed: int) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    log, unbroken = folder / "log.txt", folder / "unbroken"
    code, total = in_child(unbroken, 0, log)
    assert code == 0, f"exit code {code}: {text_of(log)}"
    draw = random.Random(seed)
    killed = runs = resumed = 0
    while killed < kills:
        runs += 1
        run = folder / f"run-{runs}"
        while True:
            code, _ = in_child(run, draw.randrange(1, total), log)
            if code == 0:
                break
            assert code == -signal.SIGKILL, f"exit code {code}: {text_of(log)}"
            killed += 1
            resumed += (run / "last.pt").exists()
        assert_same_runs(run, unbroken)
        assert (run / "curves.png").stat().st_size > 0
    print(f"{killed} kills in {runs} runs ({resumed} of them with a checkpoint) at lines drawn from {total}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
