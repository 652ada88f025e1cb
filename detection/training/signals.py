"""Signals that stop a training run, and what the user is told about it."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from vovnet.detection import distributed
from vovnet.detection.training.command import how_to_resume
from vovnet.detection.training.run import TIME_IS_UP, Run
from vovnet.errors import StoppedError

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
"""Names of the signals that stop a run; a platform may lack some. SLURM's ``--signal`` sends one of the last two."""


class TrainingInterrupted(StoppedError):
    """The run was stopped by a signal such as Ctrl-C or by its time limit. The message says what is saved.

    Attributes:
        exit_code: the shell's exit code for that signal, 128 + its number: 130 for Ctrl-C, 143 for SIGTERM. It is 124
            for the time limit, as of the command ``timeout``.
    """

    def __init__(self, message: str, number: int = signal.SIGINT) -> None:
        super().__init__(message)
        self.exit_code = 124 if number == TIME_IS_UP else 128 + number


class StopSignals:
    """The stop signals that this process has received.

    Attributes:
        run: the run that the first signal stops after its iteration. While it is None, before the loop, the first
            signal stops the process at once.
        number: the first signal that arrived, or 0.
    """

    def __init__(self) -> None:
        self.run: Run | None = None
        self.number = 0

    def receive(self, number: int) -> None:
        """Ask the run to stop, or stop at once: before the loop, and on a Ctrl-C after an earlier signal.

        Other signals never stop a run at once, because systems send them repeatedly: a terminal that is closed sends
        SIGHUP twice, and a cluster sends SIGTERM after the signal that was asked for.

        Raises:
            KeyboardInterrupt: the process stops at once. :func:`stop_signals` turns it into ``TrainingInterrupted``.
        """
        first, self.number = not self.number, self.number or number
        if self.run is None or (number == signal.SIGINT and not first):
            raise KeyboardInterrupt
        if first:
            self.run.stop_signal = number
            if distributed.rank() == 0:
                _print_at_once(_answer(self.run, number))


@contextlib.contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Handle the stop signals in a ``with`` block, and afterwards restore the handlers that were there.

    Signals that are ignored stay ignored (``nohup``). SIGHUP, SIGUSR1 and SIGUSR2 are left to handlers of the caller.
    In a thread that is not the main one nothing is changed, because handlers cannot be set there.

    Raises:
        TrainingInterrupted: a signal stopped the block at once.
    """
    signals, owner = StopSignals(), os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            signals.receive(number)
        else:  # a child that was forked meanwhile, such as a worker of the caller's; the signal is not for the run
            signal.signal(number, previous[number])
            signal.raise_signal(number)

    previous = {number: signal.getsignal(number) for number in map(_number, SIGNALS) if number and _is_ours(number)}
    try:
        for number in previous:
            signal.signal(number, handle)
    except ValueError:  # not in the main thread
        previous = {}
    try:
        yield signals
    except KeyboardInterrupt:
        if not signals.number:
            raise
        raise _stopped_at_once(signals) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def agree_to_stop(run: Run) -> None:
    """Set ``run.stopping`` in all processes if one was told to stop or its time is up; all call this together."""
    run.note_time()
    number = max(distributed.gather(run.stop_signal))
    if number:  # otherwise a signal that arrived during the exchange would be forgotten
        run.stop_signal, run.stopping = number, True


def stopped(run: Run) -> TrainingInterrupted:
    """Return the error that ends a run whose state has been saved."""
    due = "; its evaluation is left for then" if run.evaluation_due else ""
    return TrainingInterrupted(
        f"stopped by {_name(run.stop_signal)} after iteration {run.iteration} of {run.recipe.solver.max_iterations}; "
        f"saved to {run.output / 'last.pt'}; {how_to_resume(run.output)}{due}",
        run.stop_signal,
    )


def _stopped_at_once(signals: StopSignals) -> TrainingInterrupted:
    run = signals.run
    if run is None:
        return TrainingInterrupted(
            f"stopped by {_name(signals.number)} before the first iteration; there was nothing to save", signals.number
        )
    saved = f"saved is iteration {run.saved}; {how_to_resume(run.output)}" if run.saved else "nothing was saved yet"
    return TrainingInterrupted(
        f"stopped at once after iteration {run.iteration} of {run.recipe.solver.max_iterations}; {saved}", signal.SIGINT
    )


def _answer(run: Run, number: int) -> str:
    sender = "" if number == signal.SIGINT else f"{_name(number)}: "
    if run.evaluation_due:
        return f"{sender}stopping the evaluation; resuming the run will repeat it"
    return (
        f"{sender}stopping after this iteration; press Ctrl-C again to stop now and lose the iterations since the last "
        f"checkpoint ({run.iteration - run.saved})"
    )


def _print_at_once(line: str) -> None:
    """Print a line to stderr from a signal handler, where nothing may fail: the terminal may be the one that closed."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        try:
            sys.stderr.write(f"\n{line}\n")
            sys.stderr.flush()
        except RuntimeError:  # the signal arrived while the same stream was being written
            os.write(2, f"\n{line}\n".encode(errors="replace"))


def _number(name: str) -> int:
    return int(getattr(signal, name, 0))


def _name(number: int) -> str:
    if number == TIME_IS_UP:
        return "the time limit"
    return "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name


def _is_ours(number: int) -> bool:
    handler = signal.getsignal(number)
    if number in (signal.SIGINT, signal.SIGTERM):
        return handler not in (signal.SIG_IGN, None)  # None: a handler in C, which could not be restored
    return handler == signal.SIG_DFL
