"""Signals stop a run: after its iteration, in an evaluation, before the loop, and at once."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Squares, assert_same_runs, lines_of, short_recipe

from vovnet.detection.training import engine
from vovnet.detection.training.callbacks import Callback
from vovnet.detection.training.engine import train
from vovnet.detection.training.run import Run
from vovnet.detection.training.signals import SIGNALS, TrainingInterrupted, stop_signals

HERE = [getattr(signal, name) for name in SIGNALS if hasattr(signal, name)]


@pytest.fixture(autouse=True, scope="module")
def without_curves() -> Any:
    """Drawing takes most of the time of such a run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "plot_curves", lambda log, out: None)
        yield


@pytest.fixture(autouse=True, scope="module")
def signals_as_usual() -> Any:
    """``nohup`` ignores SIGHUP, and a run then keeps it ignored, as it should. These tests need its usual effect."""
    ignored = [number for number in HERE if signal.getsignal(number) is signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


class Sending(Callback):
    """Sends signals to this process after an iteration."""

    def __init__(self, at: int, *numbers: int) -> None:
        self.at, self.numbers = at, numbers

    def iteration(self, run: Run, losses: Mapping[str, float]) -> None:
        if run.iteration == self.at:
            for number in self.numbers:
                signal.raise_signal(number)


def squares_that(act: Callable[[], None], when: int = 1) -> Squares:
    """A dataset that does something when an image is read for the ``when``-th time."""

    class Acting(Squares):
        reads = 0

        def __getitem__(self, index: int) -> Any:
            self.reads += 1
            if self.reads == when:
                act()
            return super().__getitem__(index)

    return Acting()


def run_to(output: Path, *callbacks: Callback, resume: bool = False, **data: Any) -> None:
    datasets = {"train_dataset": Squares(), "val_dataset": Squares(), **data}
    train(short_recipe(evaluate_every=2), output, resume=resume, callbacks=callbacks, progress=False, **datasets)


def saved_iteration(output: Path) -> int:
    return int(torch.load(output / "last.pt", weights_only=True)["iteration"])


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("unbroken")
    run_to(output)
    return output


@pytest.mark.parametrize("number", HERE)
def test_every_signal_saves_the_run_after_its_iteration(number: int, tmp_path: Path) -> None:
    before = [signal.getsignal(one) for one in HERE]
    with pytest.raises(TrainingInterrupted) as caught:
        run_to(tmp_path, Sending(1, number))
    assert caught.value.exit_code == 128 + number
    assert "resume=True" in str(caught.value)
    assert saved_iteration(tmp_path) == 1
    assert [signal.getsignal(one) for one in HERE] == before


def test_the_first_ctrl_c_answers_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told: list[str] = []

    class Listening(Sending):
        def iteration(self, run: Run, losses: Mapping[str, float]) -> None:
            super().iteration(run, losses)
            told.append(capsys.readouterr().err)

    with pytest.raises(TrainingInterrupted):
        run_to(tmp_path, Listening(1, signal.SIGINT))
    (line,) = [line for line in told[0].splitlines() if "stopping" in line]
    assert "press Ctrl-C again" in line
    assert "(1)" in line


def test_a_signal_in_an_evaluation_leaves_it_for_the_resumed_run(unbroken: Path, tmp_path: Path) -> None:
    interrupted = squares_that(lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(TrainingInterrupted, match=r"after iteration 2 of 3.*evaluation"):
        run_to(tmp_path, val_dataset=interrupted)
    assert interrupted.reads == 1
    with pytest.raises(TrainingInterrupted, match="after iteration 2 of 3"):
        run_to(tmp_path, resume=True, val_dataset=squares_that(lambda: signal.raise_signal(signal.SIGTERM), when=4))
    run_to(tmp_path, resume=True)
    assert_same_runs(tmp_path, unbroken)


def test_a_signal_in_the_last_iteration_leaves_only_the_evaluation(unbroken: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainingInterrupted, match=r"after iteration 3 of 3.*evaluation"):
        run_to(tmp_path, Sending(3, signal.SIGINT))
    run_to(tmp_path, resume=True)
    assert_same_runs(tmp_path, unbroken)


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="this platform does not tell who sent a signal")
def test_signals_to_every_process_leave_the_loaders_at_work(unbroken: Path, tmp_path: Path) -> None:
    """SLURM and systemd signal all processes; without its loaders a run could not finish its iteration."""

    class ToAll(Callback):
        def iteration(self, run: Run, losses: Mapping[str, float]) -> None:
            if run.iteration == 1:
                loaders = multiprocessing.active_children()
                assert loaders
                pids = " ".join(str(loader.pid) for loader in loaders)
                for number in HERE:  # by another process, because a loader ends by SIGTERM of its parent
                    subprocess.run(["sh", "-c", f"kill -{int(number)} {pids}"], check=True)

    recipe = short_recipe(evaluate_every=2)
    recipe.data.workers = 1
    train(recipe, tmp_path, train_dataset=Squares(), val_dataset=Squares(), callbacks=[ToAll()], progress=False)
    assert lines_of(tmp_path) == lines_of(unbroken)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_loop_has_nothing_to_save(number: int, tmp_path: Path) -> None:
    class Slow(Squares):
        def __len__(self) -> int:
            signal.raise_signal(number)
            return super().__len__()

    with pytest.raises(TrainingInterrupted, match="before the first iteration") as caught:
        run_to(tmp_path, train_dataset=Slow())
    assert caught.value.exit_code == 128 + number
    assert not (tmp_path / "last.pt").exists()


def test_a_second_ctrl_c_stops_at_once_and_leaves_the_last_checkpoint(
    unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def interrupted(state: dict[str, Any], file: Any) -> None:
        file.write(b"half of it")
        if state["iteration"] == 3:
            signal.raise_signal(signal.SIGINT)
            pytest.fail("the save went on")
        file.seek(0)
        save(state, file)

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(TrainingInterrupted, match="at once after iteration 3 of 3; saved is iteration 2") as caught:
        run_to(tmp_path, Sending(3, signal.SIGTERM))
    assert caught.value.exit_code == 130
    assert caught.value.__cause__ is None
    assert saved_iteration(tmp_path) == 2
    monkeypatch.undo()
    run_to(tmp_path, resume=True)
    assert_same_runs(tmp_path, unbroken)


def test_other_signals_that_come_twice_save(tmp_path: Path) -> None:
    """A closed terminal sends SIGHUP twice, and a cluster SIGTERM after the signal that was asked for."""
    with pytest.raises(TrainingInterrupted) as caught:
        run_to(tmp_path, Sending(1, *[number for number in HERE if number != signal.SIGINT] * 2))
    assert caught.value.exit_code == 128 + signal.SIGTERM
    assert saved_iteration(tmp_path) == 1


def test_time_makes_checkpoints_too(unbroken: Path, tmp_path: Path) -> None:
    recipe = short_recipe(evaluate_every=2)
    recipe.log.checkpoint_minutes = 1e-9
    saved: list[int] = []

    class Looking(Callback):
        def iteration(self, run: Run, losses: Mapping[str, float]) -> None:
            saved.append(run.saved)

    train(recipe, tmp_path, train_dataset=Squares(), val_dataset=Squares(), callbacks=[Looking()], progress=False)
    assert saved == [0, 1, 2]
    assert lines_of(tmp_path) == lines_of(unbroken)


@pytest.fixture
def handlers() -> Any:
    kept = {number: signal.getsignal(number) for number in HERE}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", HERE)
def test_ignored_signals_stay_ignored(number: int, handlers: None) -> None:
    signal.signal(number, signal.SIG_IGN)
    with stop_signals() as signals:
        signal.raise_signal(number)
    assert signals.number == 0
    assert signal.getsignal(number) == signal.SIG_IGN


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs SIGUSR1")
def test_a_handler_of_the_caller_stays(handlers: None) -> None:
    heard: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    with stop_signals():
        signal.raise_signal(signal.SIGUSR1)
    assert heard == [signal.SIGUSR1]


def test_a_platform_without_these_signals_has_the_others(handlers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SIGHUP", "SIGUSR1", "SIGUSR2"):
        monkeypatch.delattr(signal, name, raising=False)
    with pytest.raises(TrainingInterrupted), stop_signals():
        signal.raise_signal(signal.SIGTERM)


def test_another_thread_changes_no_handler() -> None:
    before, inside = [signal.getsignal(number) for number in HERE], []

    def work() -> None:
        with stop_signals():
            inside.extend(signal.getsignal(number) for number in HERE)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_ends_by_the_signal(handlers: None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with stop_signals():
        child = os.fork()
        if not child:
            signal.raise_signal(signal.SIGTERM)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM


@pytest.mark.parametrize("error", [OSError(5, "the terminal is gone"), ValueError("closed"), RuntimeError("reentrant")])
def test_a_terminal_that_is_gone_does_not_lose_the_run(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gone:
        def write(self, text: str) -> None:
            raise error

    class Closing(Sending):
        def iteration(self, run: Run, losses: Mapping[str, float]) -> None:
            monkeypatch.setattr(sys, "stderr", Gone())
            super().iteration(run, losses)

    with pytest.raises(TrainingInterrupted):
        run_to(tmp_path, Closing(1, signal.SIGTERM))
    assert saved_iteration(tmp_path) == 1


def in_two_processes(repository: Path, output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    helpers = repository / "tests" / "helpers"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"]
    return subprocess.run(
        [sys.executable, *launcher, "--master-port", port, str(helpers / "signalled_run.py"), str(output), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, (repository, helpers)))},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="needs SIGUSR1")
def test_one_process_of_two_stops_both(repository: Path, tmp_path: Path) -> None:
    done = in_two_processes(repository, tmp_path / "unbroken")
    assert done.returncode == 0, done.stderr
    output = tmp_path / "run"
    for where, name, said in (
        ("train", "SIGUSR1", "stopped by SIGUSR1 after iteration 2 of 4"),
        ("val", "SIGTERM", "stopped by SIGTERM after iteration 2 of 4"),
        ("val", "SIGHUP", "stopped by SIGHUP after iteration 2 of 4"),
        ("val", "SIGKILL", ""),
    ):
        done = in_two_processes(repository, output, where, name)
        assert done.returncode != 0
        assert said in done.stderr, done.stderr  # process 0 may be ended by torchrun before its line
    done = in_two_processes(repository, output)
    assert done.returncode == 0, done.stderr
    assert_same_runs(output, tmp_path / "unbroken")
