"""A training run for torchrun that dies at given moments: ``elastic_run.py OUTPUT ITERATIONS [MARKS [DEATH …]]``.

A death is ``WHO:IMAGES``. After the process of that rank has read so many images, it is killed. If the environment
names a ``MACHINE``, that is who dies, with its torchrun. ``MARKS`` is a folder with a file for each death that has
happened; each happens once.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from tiny_runs import Squares, tiny_model
from torchvision import tv_tensors

from vovnet.detection.config.data import DataRecipe
from vovnet.detection.config.schema import LogRecipe, Recipe
from vovnet.detection.config.solver import SolverRecipe
from vovnet.detection.training.engine import train
from vovnet.errors import one_line_errors


class MortalSquares(Squares):
    """A dataset whose reading kills the process at the given moments."""

    count = 6

    def __init__(self, marks: Path | None = None, deaths: tuple[str, ...] = ()) -> None:
        self.marks, self.deaths, self.read = marks, deaths, 0

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, dict[str, Any]]:
        self.read += 1
        for death in self.deaths:
            who, images = death.split(":")
            if who == os.environ.get("MACHINE", os.environ["RANK"]) and int(images) == self.read:
                self._die(death)
        return super().__getitem__(index)

    def _die(self, death: str) -> None:
        assert self.marks is not None
        mark = self.marks / death
        if mark.exists():
            return
        mark.touch()
        if "MACHINE" in os.environ:
            os.kill(os.getppid(), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    """Train with ``resume="auto"``."""
    output, iterations, *rest = sys.argv[1:]
    recipe = Recipe(
        model=tiny_model("vovnet27_slim"),
        data=DataRecipe(train_min_sizes=[56, 64], train_max_size=64, workers=0),
        solver=SolverRecipe(
            base_lr=0.002,
            batch_size=4,
            reference_batch_size=2,
            max_iterations=int(iterations),
            steps=[],
            warmup_iterations=1,
        ),
        log=LogRecipe(log_every=1, evaluate_every=4, checkpoint_every=3),
    )
    training = MortalSquares(Path(rest[0]), tuple(rest[1:])) if rest else MortalSquares()
    with one_line_errors():
        train(recipe, output, train_dataset=training, val_dataset=MortalSquares(), resume="auto", progress=False)


if __name__ == "__main__":
    main()
