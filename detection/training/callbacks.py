"""Callbacks of a training run: the metrics file, the progress bar, and the base class of your own."""

from __future__ import annotations

import contextlib
import json
import os
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from vovnet.detection.evaluation.coco_eval import percent
from vovnet.detection.progress import open_bar
from vovnet.detection.training.metrics_log import flat_metrics, read_metrics
from vovnet.detection.training.run import Run
from vovnet.environment import peak_memory
from vovnet.errors import reason
from vovnet.files import write_text


class Callback:
    """Base class of what :func:`vovnet.detection.train` calls in ``callbacks``; override the methods you need.

    They are called in the process of rank 0 only. An error that a method raises ends the run.
    """

    def start(self, run: Run) -> None:
        """Called before the first iteration, also when a run is resumed.

        Args:
            run: the run, with its recipe, detector and iteration; it is the same object in every call.
        """

    def iteration(self, run: Run, losses: Mapping[str, float]) -> None:
        """Called after each iteration.

        Args:
            run: the run.
            losses: the sum as ``loss``, and its parts; empty if the iteration was skipped.
        """

    def evaluation(self, run: Run, metrics: Mapping[str, Any]) -> None:
        """Called after each evaluation.

        Args:
            run: the run.
            metrics: what :func:`vovnet.detection.evaluate` returns: AP in 0..1.
        """

    def stop(self, run: Run) -> None:
        """Called when the run ends, also after an error.

        Args:
            run: the run.
        """


class BestEffort(Callback):
    """Calls a callback that a run can do without; after its first error it warns, and the run goes on without it."""

    def __init__(self, callback: Callback, what: str) -> None:
        self.callback, self.what = callback, what
        self.failed = False

    def start(self, run: Run) -> None:
        self._call(self.callback.start, run)

    def iteration(self, run: Run, losses: Mapping[str, float]) -> None:
        self._call(self.callback.iteration, run, losses)

    def evaluation(self, run: Run, metrics: Mapping[str, Any]) -> None:
        self._call(self.callback.evaluation, run, metrics)

    def stop(self, run: Run) -> None:
        self._call(self.callback.stop, run)

    def _call(self, method: Callable[..., None], run: Run, *values: Mapping[str, Any]) -> None:
        if self.failed:
            return
        try:
            method(run, *values)
        except (Exception, SystemExit) as error:  # a damaged package may raise anything when it is imported
            self.failed = True
            with contextlib.suppress(Exception):
                self.callback.stop(run)
            warnings.warn(
                f"{self.what} stops here, and the run goes on without it ({type(error).__name__}: {reason(error)})",
                RuntimeWarning,
                stacklevel=2,
            )


class Speed:
    """Measures how long iterations take, without the evaluations between them."""

    def begin(self, run: Run) -> None:
        """Measure from here on."""
        self.iteration, self.moment = run.iteration, time.monotonic()

    def measure(self, run: Run) -> dict[str, float]:
        """Return the numbers of :data:`.metrics_log.MEASURED`, and measure the next ones from here on."""
        images = run.recipe.solver.batch_size * (run.iteration - self.iteration)
        speed = images / max(time.monotonic() - self.moment, 1e-9)
        self.begin(run)
        memory = memory_in_use(run.device)
        numbers = {"seconds": round(run.seconds, 3), "images_per_second": round(speed, 3)}
        return numbers if memory is None else {**numbers, "memory": memory}


class MetricsFile(Callback):
    """Writes ``metrics.jsonl``: an object a line, with losses every ``log_every`` iterations and AP at evaluations."""

    def __init__(self, path: Path, log_every: int) -> None:
        self.path = path
        self.log_every = log_every
        self.speed = Speed()

    def start(self, run: Run) -> None:
        """Remove the lines that an interrupted run wrote after the checkpoint that this run continues from."""
        records = read_metrics(self.path) if self.path.exists() else []
        kept = [record for record in records if record["iteration"] <= run.iteration]
        if run.evaluation_due:  # its line may have been written, but the checkpoint after it was not
            kept = [record for record in kept if "loss" in record or record["iteration"] < run.iteration]
        write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
        self.speed.begin(run)

    def iteration(self, run: Run, losses: Mapping[str, float]) -> None:
        if losses and (run.iteration % self.log_every == 0 or run.iteration == run.recipe.solver.max_iterations):
            self._write({"iteration": run.iteration, **losses, "lr": run.last_lr, **self.speed.measure(run)})

    def evaluation(self, run: Run, metrics: Mapping[str, Any]) -> None:
        classes = {"per_class": metrics["per_class"]} if "per_class" in metrics else {}
        seconds = {"seconds": round(run.seconds, 3)}
        self._write({"iteration": run.iteration, **flat_metrics(metrics), **seconds, **classes})
        self.speed.begin(run)

    def _write(self, values: Mapping[str, Any]) -> None:
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(values) + "\n")
                file.flush()
                os.fsync(file.fileno())  # a checkpoint that is written later must not survive without this line
        except OSError as error:  # the error of a failed write has no file name
            raise OSError(error.errno, error.strerror, str(self.path)) from error


class ProgressBar(Callback):
    """Shows loss, learning rate, images per second, memory and remaining time in one line on stderr."""

    def start(self, run: Run) -> None:
        self.last, self.smoothed = time.monotonic(), 0.0
        self.bar = open_bar(
            run.recipe.solver.max_iterations,
            "train",
            "it",
            start=run.iteration,
            leave=True,
            pause=0.5,
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
        memory = memory_in_use(run.device)
        self.bar.set_postfix_str(
            f"loss {losses['loss']:.3f} ({parts}) lr {run.last_lr:.2g} {self.smoothed:.1f} img/s"
            + ("" if memory is None else f" {memory / 2**30:.1f} GiB"),
            refresh=False,
        )
        self.bar.update()

    def evaluation(self, run: Run, metrics: Mapping[str, Any]) -> None:
        numbers = "  ".join(
            f"{name} {percent(value)} %"
            for name, value in flat_metrics(metrics).items()
            if name.endswith(("_ap", "_ap50"))
        )
        self.bar.write(f"evaluation at iteration {run.iteration}: {numbers}", file=self.bar.fp)
        self.last = time.monotonic()

    def stop(self, run: Run) -> None:
        self.bar.close()


def memory_in_use(device: torch.device) -> int | None:
    """Return memory in bytes: the allocator's peak on a GPU (on a Mac's, what it holds now), else the process's peak.

    It is None where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return torch.mps.driver_allocated_memory() if device.type == "mps" else peak_memory()
