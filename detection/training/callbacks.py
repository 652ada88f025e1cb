"""What watches a training run: the metrics file, the progress bar, TensorBoard, and users' own callbacks."""

from __future__ import annotations

import importlib.util
import json
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vovnet.errors import InputError

if TYPE_CHECKING:
    from vovnet.detection.training.run import Run


class Callback:
    """Base of everything that watches a run; override what you need. Called in the process of rank 0 alone."""

    def start(self, run: Run) -> None:
        """Before the first iteration (or the first after a resumption)."""

    def iteration(self, run: Run, losses: Mapping[str, float]) -> None:
        """After each iteration; ``losses`` holds the sum as ``loss`` and its parts, or nothing if it was left out."""

    def evaluation(self, run: Run, metrics: Mapping[str, Any]) -> None:
        """After each evaluation; ``metrics`` is what :func:`vovnet.detection.evaluate` returns."""

    def stop(self, run: Run) -> None:
        """When the run ends, however it ends."""


class MetricsFile(Callback):
    """``metrics.jsonl``: an object a line, of losses every ``log_every`` iterations and of AP at evaluations."""

    def __init__(self, path: Path, log_every: int) -> None:
        self.path = path
        self.log_every = log_every

    def start(self, run: Run) -> None:
        """Drop what an interrupted run wrote after the checkpoint that this one continues from."""
        from vovnet.files import atomic_path

        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        kept = [line for line in lines if _iteration_of(line) <= run.iteration]
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
        except OSError as error:  # a failed write does not know its file's name
            raise OSError(error.errno, error.strerror, str(self.path)) from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The objects of a run's ``metrics.jsonl`` in order, without lines that are none, such as a half-written last one.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("iteration"), int):
            records.append(record)
    return records


class ProgressBar(Callback):
    """One line on stderr: loss, learning rate, images a second, memory, time left."""

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
            f"{name} {value:.3f}" for name, value in flat_metrics(metrics).items() if name.endswith(("_ap", "_ap50"))
        )
        self.bar.write(f"evaluation at iteration {run.iteration}: {numbers}", file=sys.stderr)
        self.last = time.monotonic()

    def stop(self, run: Run) -> None:
        self.bar.close()


class TensorBoard(Callback):
    """The numbers of the metrics file as TensorBoard scalars, in ``RUN/tensorboard``."""

    def __init__(self, folder: Path, log_every: int) -> None:
        self.folder = folder
        self.log_every = log_every

    @staticmethod
    def installed() -> bool:
        """Whether the optional ``tensorboard`` package can be imported."""
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


def flat_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """COCO's numbers under the names of the metrics file: ``box_ap``, ``box_ap50``, …, ``mask_ap``, …"""
    kinds = {"bbox": "box", "segm": "mask"}
    return {
        f"{kinds[kind]}_{name.lower()}": value
        for kind in kinds
        for name, value in metrics.get(kind, {}).items()
        if isinstance(value, int | float)
    }


def memory_in_use(device: torch.device) -> float:
    """Peak memory in GiB: the allocator's on a GPU, the process's on the CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _iteration_of(line: str) -> float:
    try:
        return float(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):
        return float("inf")  # half a line, from a run that was killed while it wrote
