"""Loader processes: those that cannot start, die, exit or freeze, and signals that they leave to their parent."""

import contextlib
import errno
import gc
import multiprocessing
import os
import re
import signal
import sys
import warnings
from itertools import islice
from typing import Any

import pytest
import torch
from least_dataset import MinimalDataset, quick_recipe

from vovnet.detection.data.failures import LoaderError
from vovnet.detection.data.loader import evaluation_loader, training_loader


def test_workers_leave_ctrl_c_to_the_parent() -> None:
    batches = training_loader(MinimalDataset(), quick_recipe(workers=1), batch_size=1, seed=0)
    next(batches)
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
    assert len(list(islice(batches, 6))) == 6


def test_no_batch_is_in_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container has 64 MB of it, and torch notices that it is full where nobody can catch the error."""

    def full(*arguments: object) -> None:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    monkeypatch.setattr(torch.UntypedStorage, "_share_filename_cpu_", full)
    monkeypatch.setattr(torch.UntypedStorage, "_new_using_fd_cpu", full)
    assert len(list(evaluation_loader(MinimalDataset(), workers=1))) == 3


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no files in memory on this system")
def test_batches_in_pipes_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> int:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refuse)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        assert len(list(evaluation_loader(MinimalDataset(), workers=1))) == 3
    (told,) = [warning for warning in caught if "pipes" in str(warning.message)]
    assert told.category is RuntimeWarning


def test_a_daemonic_process_loads_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    with pytest.warns(RuntimeWarning, match=r"data\.workers=2.*daemonic"):
        assert len(list(evaluation_loader(MinimalDataset(), workers=2))) == 3


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EROFS, errno.EMFILE, errno.EAGAIN, errno.ENOMEM])
@pytest.mark.parametrize("started", [0, 1])
def test_workers_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch, number: int, started: int) -> None:
    start = multiprocessing.Process.start
    calls = []

    def refuse(process: multiprocessing.Process) -> None:
        calls.append(process)
        if len(calls) > started:
            raise OSError(number, os.strerror(number))
        start(process)

    monkeypatch.setattr(multiprocessing.Process, "start", refuse)
    noise: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", noise.append)
    with pytest.warns(RuntimeWarning, match=re.escape(os.strerror(number))):
        assert len(list(evaluation_loader(MinimalDataset(), workers=2))) == 3
    gc.collect()
    assert not noise
    assert not multiprocessing.active_children()


class Signals(MinimalDataset):
    """A dataset whose second image sends its process a signal."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __getitem__(self, index: int) -> Any:
        if index == 1:
            if self.number < 0:
                os._exit(-self.number)
            os.kill(os.getpid(), self.number)
        return super().__getitem__(index)


DEADLY = [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS]


@pytest.mark.parametrize("number", DEADLY, ids=lambda number: signal.Signals(number).name)
def test_a_worker_that_dies(number: int) -> None:
    with pytest.raises(LoaderError, match=signal.Signals(number).name) as caught:
        list(evaluation_loader(Signals(number), workers=2, timeout=60))
    assert "\n" not in str(caught.value)
    assert "data.workers=0" in str(caught.value)


def test_a_worker_that_exits() -> None:
    with pytest.raises(LoaderError, match="exit code 3"):
        list(evaluation_loader(Signals(-3), workers=1, timeout=60))


def test_a_dead_worker_is_noticed_though_another_library_swallows_the_error() -> None:
    batches = training_loader(MinimalDataset(), quick_recipe(workers=1, timeout=60), batch_size=1, seed=0)
    next(batches)
    (worker,) = multiprocessing.active_children()
    with contextlib.suppress(RuntimeError):  # torch raises wherever this process happens to be
        worker.kill()
        worker.join()
    with pytest.raises(LoaderError, match="SIGKILL"):
        next(batches)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_frozen_worker(workers: int) -> None:
    with pytest.raises(LoaderError, match=r"data\.timeout"):
        list(evaluation_loader(Signals(signal.SIGSTOP), workers=workers, timeout=1.5))
    assert not multiprocessing.active_children()


@pytest.mark.slow
def test_workers_that_froze_do_not_delay_the_end() -> None:
    """torch sends SIGTERM, which a stopped process does not see, and Python waits for all its children at its exit."""
    batches = training_loader(MinimalDataset(), quick_recipe(workers=1, timeout=60), batch_size=1, seed=0)
    next(batches)
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)
    batches.close()
    assert not multiprocessing.active_children()
