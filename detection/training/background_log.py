"""Loggers beside a run. Each has its own thread, so that one that fails or hangs neither ends nor slows the run."""

from __future__ import annotations

import contextlib
import queue
import random
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vovnet.detection import distributed
from vovnet.detection.config.schema import LogRecipe
from vovnet.detection.training.callbacks import Callback, Speed
from vovnet.detection.training.loggers import LOGGERS, Logger
from vovnet.detection.training.metrics_log import flat_metrics
from vovnet.detection.training.run import Run
from vovnet.errors import InputError, install_advice, reason

OPEN_SECONDS = 120.0
"""How long a logger may take before the first iteration."""
CLOSE_SECONDS = 60.0
"""How long a run waits at its end until a logger has written everything."""
MOST_WAITING = 10_000
"""How many lines may wait for a slow logger."""


class LoggerError(RuntimeError):
    """A logger did not answer in time."""


class BackgroundLog(Callback):
    """Gives a run's numbers to a logger in a thread; after its first failure it warns, and the run goes on without it.

    Args:
        logger: the logger.
        log_every: iterations between two lines of losses.
        required: True if the recipe names the logger: then a failure before the first iteration is an error.
    """

    def __init__(self, logger: Logger, log_every: int, *, required: bool) -> None:
        self.logger, self.log_every, self.required = logger, log_every, required
        self.speed = Speed()
        # What waits to be written; a flag, True if the run has come to its end, closes the record.
        self.lines: queue.Queue[tuple[dict[str, float], int] | bool] = queue.Queue(MOST_WAITING)
        self.failure: BaseException | None = None
        self.over = False
        self.opened, self.closed = threading.Event(), threading.Event()

    def open(self, run: Run) -> None:
        """Open the logger's record.

        Raises:
            InputError: it cannot be opened, and the recipe names the logger.
        """
        before = random.getstate()  # a logger may draw a name
        # A daemon, because a logger that hangs must not keep the process alive.
        threading.Thread(target=self._work, args=(run,), name=f"log to {self.logger.title}", daemon=True).start()
        if not self.opened.wait(OPEN_SECONDS):
            self.failure = LoggerError(f"no answer for {OPEN_SECONDS:g} seconds")
        random.setstate(before)
        if self.failure is not None and self.required:
            self.over = True
            raise InputError(
                f"log.loggers: {self.logger.package} refuses this run "
                f"({type(self.failure).__name__}: {reason(self.failure)[:300]}); {self.logger.help}"
            ) from self.failure

    def start(self, run: Run) -> None:
        self.speed.begin(run)

    def iteration(self, run: Run, losses: Mapping[str, float]) -> None:
        if run.iteration % self.log_every == 0 or run.at_end:
            values = {**losses, "lr": run.last_lr, **self.speed.measure(run)}
            self._put(({f"train/{name}": value for name, value in values.items()}, run.iteration))

    def evaluation(self, run: Run, metrics: Mapping[str, Any]) -> None:
        self._put(({f"val/{name}": value for name, value in flat_metrics(metrics).items()}, run.iteration))
        self.speed.begin(run)

    def stop(self, run: Run) -> None:
        """Wait until everything is written, but not for long."""
        if not self.over:
            self._put(run.at_end and not run.evaluation_due)
        if not self.over and not self.closed.wait(CLOSE_SECONDS):
            self.failure = self.failure or LoggerError(f"not closed within {CLOSE_SECONDS:g} seconds")
        self._check()
        self.over = True

    def _put(self, line: tuple[dict[str, float], int] | bool) -> None:
        self._check()
        if not self.over:
            try:
                self.lines.put_nowait(line)
            except queue.Full:
                self.failure = LoggerError(f"it is {MOST_WAITING} lines behind")
                self._check()

    def _check(self) -> None:
        """Warn once if the logger has failed."""
        if self.failure is None or self.over:
            return
        self.over = True
        warnings.warn(
            f"{self.logger.title}'s log stops here, and the run goes on without it "
            f"({type(self.failure).__name__}: {reason(self.failure)})",
            RuntimeWarning,
            stacklevel=2,
        )

    def _work(self, run: Run) -> None:
        """Do everything that the logger does; this is its thread."""
        name = self.logger.package
        try:
            names = self.logger.open(run, run.loggers.get(name, {}))
            if names:
                run.loggers[name] = names
            self.opened.set()
            while self.failure is None:
                line = self.lines.get()
                if isinstance(line, bool):
                    self.logger.close(finished=line)
                    return
                self.logger.write(*line)
        except BaseException as error:  # a damaged package may raise anything, also SystemExit
            self.failure = self.failure or error
            with contextlib.suppress(BaseException):
                self.logger.close(finished=False)
        finally:
            self.opened.set()
            self.closed.set()


def logs_of(recipe: LogRecipe) -> list[BackgroundLog]:
    """Return the logs that a recipe names; if it says nothing, TensorBoard's where it is installed.

    Raises:
        InputError: one of the packages is not installed.
    """
    names = ["tensorboard"] if recipe.loggers is None else list(dict.fromkeys(recipe.loggers))
    absent = [name for name in names if not LOGGERS[name].installed()]
    if recipe.loggers is not None and absent:
        raise InputError(
            f"log.loggers: {absent[0]} is not installed; {install_advice(absent[0])}, or leave it out of log.loggers"
        )
    return [
        BackgroundLog(LOGGERS[name](), recipe.log_every, required=recipe.loggers is not None)
        for name in names
        if name not in absent
    ]


@contextlib.contextmanager
def open_logs(run: Run, logs: Sequence[BackgroundLog]) -> Iterator[None]:
    """Open logs in the process of rank 0, and close them after the ``with`` block if the run has not done so.

    Raises:
        InputError: in every process, if one that the recipe names cannot be opened.
    """

    def open_all(stack: contextlib.ExitStack) -> None:
        for log in logs:
            stack.callback(log.stop, run)
            log.open(run)

    with distributed.opened_by_main(open_all):
        yield
