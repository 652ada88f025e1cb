"""A run of which one process sends itself a signal: ``torchrun … signalled_run.py OUTPUT [WHERE SIGNAL]``.

WHERE is ``train`` or ``val``: process 1 gets the signal when it reads its second image of that dataset.
"""

from __future__ import annotations

import os
import random
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tiny_runs import Squares, short_recipe

from vovnet.detection.training.engine import train
from vovnet.errors import one_line_errors


class Signalling(Squares):
    """Squares; reading the second of them sends a signal to this process if it is process 1."""

    def __init__(self, number: int) -> None:
        self.number, self.reads = number, 0

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        if self.reads == 2 and os.environ["RANK"] == "1":
            signal.raise_signal(self.number)
        return super().__getitem__(index)


def main(output: Path, where: str = "", name: str = "") -> None:
    torch.set_num_threads(1)
    random.seed(0)  # otherwise each process has its own state of it, which checkpoints contain
    np.random.seed(0)
    data: dict[str, Any] = {"train": Squares(), "val": Squares()}
    if where:
        data[where] = Signalling(signal.Signals[name])
    with one_line_errors():
        train(
            short_recipe(evaluate_every=2, max_iterations=4),
            output,
            train_dataset=data["train"],
            val_dataset=data["val"],
            resume="auto",
            progress=False,
            device="cpu",
        )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
