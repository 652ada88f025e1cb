"""Callbacks of a training run: the metrics file, the progress bar, TensorBoard, and the base class of your own."""

from __future__ import annotations

import importlib.util
import json
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vovnet.detection.evaluation.coco_eval import percent
from vovnet.detection.training.metrics_log import flat_metrics, iteration_of
from vovnet.detection.training.run import Run
from vovnet.files import atomic_path


class Callback:
    """Base class; override the methods you need. They are called in the process of rank 0 only."""

    def start(self, run: Run) -> None:
        """Called before the first iteration, also when a run is resumed."""

    def iteration(self, run: Run, losses: Mapping[str, float]) -> None:
        """Called after each iteration; ``losses`` has the sum as ``loss`` and its parts, and is empty if skipped."""

    def evaluation(self, run: Run, metrics: Mapping[str, Any]) -> None:
        """Called after each evaluation; ``metrics`` is what :func:`vovnet.detection.evaluate` returns."""

    def stop(self, run: Run) -> None:
        """Called when the run ends, also after an error."""


class MetricsFile(Callback):
    """Writes ``metrics.jsonl``: an object a line, with losses every ``log_every`` iterations and AP at evaluations."""

    def __init__(self, path: Path, log_every: int) -> None:
        self.path = path
        self.log_every = log_every

    def start(self, run: Run) -> None:
        """Remove the lines that an interrupted run wrote after the checkpoint that this run continues from."""
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = [line for line in lines if iteration_of(line) <= run.iteration]
        with atomic_path(self.path) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def iteration(self, run: Run, losses: Mapping[str, float]) -> None:
        if losses and (run.iteration % self.log_every == 0 or run.iteration == run.recipe.solver.max_iterations):
            self._write({"iteration": run.iteration, **losses, "lr": run.last_lr})

    def evaluation(self, run: Run, metrics: Mapping[str, Any]) -> None:
        self._write({"iteration": run.iteration, **flat_metrics(metrics)})

    def _write(self, values: Mapping[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
        except OSError as error:  # the error of a failed write has no file name
            raise OSError(error.errno, error.strerror, str(self.path)) from error


class ProgressBar(Callback):
    """Shows loss, learning rate, images per second, memory and remaining time in one line on stderr."""

    def start(self, run: Run) -> None:
        from tqdm import tqdm

        self.last, self.smoothed = time.monotonic(), 0.0
        self.bar = tqdm(
            total=run.recipe.solver.max_iterations,
            initial=run.iteration,
            desc="train",
            unit="it",
            dynamic_ncols=True,
            # Without a terminal (a log file, CI) a line every ten seconds is enough.
            mininterval=0.5 if sys.stderr.isatty() else 10,
            bar_format="{desc} {percentage:3.0f}%|{bar:12}| {n_fmt}/{total_fmt} {elapsed}<{remaining}{postfix}",
        )

    def iteration(self, run: Run, losses: Mapping[str, float]) -> None:
        if not losses:
            self.bar.update()
            return
        now = time.monotonic()
        speed = run.recipe.solver.batch_size / max(now - self.last, 1e-9)
        self.last = now
        self.smoothed = 0.9 * (self.smoothed or speed) + 0.1 * speed
        parts = " ".join(
            f"{name.removeprefix('loss_')} {value:.2f}" for name, value in losses.items() if name != "loss"
        )
        self.bar.set_postfix_str(
            f"loss {losses['loss']:.3f} ({parts}) lr {run.last_lr:.2g} {self.smoothed:.1f} img/s "
            f"{memory_in_use(run.device):.1f} GiB",
            refresh=False,
        )
        self.bar.update()

    def evaluation(self, run: Run, metrics: Mapping[str, Any]) -> None:
        numbers = "  ".join(
            f"{name} {percent(value)} %"
            for name, value in flat_metrics(metrics).items()
            if name.endswith(("_ap", "_ap50"))
        )
        self.bar.write(f"evaluation at iteration {run.iteration}: {numbers}", file=sys.stderr)
        self.last = time.monotonic()

    def stop(self, run: Run) -> None:
        self.bar.close()


class TensorBoard(Callback):
    """Writes the numbers of the metrics file as TensorBoard scalars to ``RUN/tensorboard``."""

    def __init__(self, folder: Path, log_every: int) -> None:
        self.folder = folder
        self.log_every = log_every

    @staticmethod
    def installed() -> bool:
        """Return True if the optional ``tensorboard`` package is installed."""
        return importlib.util.find_spec("tensorboard") is not None

    def start(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(str(self.folder), purge_step=run.iteration + 1)

    def iteration(self, run: Run, losses: Mapping[str, float]) -> None:
        if run.iteration % self.log_every == 0:
            for name, value in {**losses, "lr": run.last_lr}.items():
                self.writer.add_scalar(f"train/{name}", value, run.iteration)

    def evaluation(self, run: Run, metrics: Mapping[str, Any]) -> None:
        for name, value in flat_metrics(metrics).items():
            self.writer.add_scalar(f"val/{name}", value, run.iteration)

    def stop(self, run: Run) -> None:
        self.writer.close()


def memory_in_use(device: torch.device) -> float:
    """Return peak memory in GiB: the allocator's on a GPU, the process's on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
