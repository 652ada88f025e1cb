"""Batches are the same whatever the workers; errors come out of workers as one line."""

import contextlib
import errno
import gc
import multiprocessing
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from vovnet.detection.config.schema import DataRecipe, DataSource
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.data.failures import LoaderError
from vovnet.detection.data.loader import Batch, evaluation_loader, training_loader
from vovnet.errors import InputError

Write = Callable[..., DataSource]


@pytest.fixture
def dataset(write: Write) -> CocoDataset:
    return CocoDataset([write(image_count=5)], masks=True, training=True)


def recipe(**fields: Any) -> DataRecipe:
    return DataRecipe(**{"train_min_sizes": [40, 50, 60], "train_max_size": 90, "colour": 0.5, "workers": 0, **fields})


def assert_equal(one: list[Batch], two: list[Batch]) -> None:
    assert len(one) == len(two)
    for (images, targets), (other_images, other_targets) in zip(one, two, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(images, other_images, strict=True))
        for target, other in zip(targets, other_targets, strict=True):
            assert target.keys() == other.keys()
            assert target["image_id"] == other["image_id"]
            for key in target.keys() - {"image_id"}:
                assert torch.equal(target[key], other[key])
                assert target[key].dtype == other[key].dtype


def test_workers_change_nothing(dataset: CocoDataset) -> None:
    here = list(islice(training_loader(dataset, recipe(), batch_size=2, seed=1), 7))
    there = list(islice(training_loader(dataset, recipe(workers=2), batch_size=2, seed=1), 7))
    assert_equal(here, there)
    resumed = list(islice(training_loader(dataset, recipe(workers=1), batch_size=2, seed=1, start=4), 3))
    assert_equal(here[4:], resumed)
    other = list(islice(training_loader(dataset, recipe(), batch_size=2, seed=2), 7))
    assert [t["image_id"] for _, ts in here for t in ts] != [t["image_id"] for _, ts in other for t in ts]


def test_what_a_batch_is(dataset: CocoDataset) -> None:
    state = torch.get_rng_state()
    images, targets = next(training_loader(dataset, recipe(workers=1), batch_size=3, seed=0))
    assert torch.equal(state, torch.get_rng_state())  # the training's own random numbers are left alone
    assert len(images) == len(targets) == 3
    for image, target in zip(images, targets, strict=True):
        assert type(image) is torch.Tensor
        assert image.dtype == torch.uint8
        assert target.keys() == {"boxes", "labels", "image_id", "area", "iscrowd", "masks"}
        for key in ("boxes", "labels", "masks"):
            assert type(target[key]) is torch.Tensor
        assert target["masks"].shape == (1, *image.shape[1:])


def test_processes_share_the_batches(dataset: CocoDataset) -> None:
    def ids(**options: int) -> Iterator[list[int]]:
        for _, targets in training_loader(dataset, recipe(), batch_size=1, seed=0, **options):
            yield [target["image_id"] for target in targets]

    whole = list(islice(ids(), 8))
    assert [*islice(ids(rank=0, world_size=2), 4)] == whole[::2]
    assert [*islice(ids(rank=1, world_size=2), 4)] == whole[1::2]


@pytest.mark.parametrize("workers", [0, 2])
def test_errors_are_one_line(write: Write, workers: int) -> None:
    source = write()
    for path in Path(source.images).iterdir():
        path.write_bytes(b"nothing")
    evaluation = CocoDataset([source], masks=False, training=False)
    with pytest.raises(InputError, match=r"1\.png") as caught:
        list(evaluation_loader(evaluation, workers=workers))
    assert "\n" not in str(caught.value)


def test_workers_leave_ctrl_c_to_the_parent(dataset: CocoDataset) -> None:
    batches = training_loader(dataset, recipe(workers=1), batch_size=1, seed=0)
    next(batches)
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
    assert len(list(islice(batches, 6))) == 6


class Minimal:
    """The least that follows the protocol."""

    categories = ({"id": 3, "name": "thing"},)

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> Any:
        target = {"boxes": torch.tensor([[1.0, 2, 30, 40]]), "labels": torch.tensor([1]), "image_id": 10 + index}
        return torch.zeros(3, 50, 60, dtype=torch.uint8), target


class Broken(Minimal):
    def __getitem__(self, index: int) -> Any:
        raise KeyError("a defect, not wrong input")


@pytest.mark.parametrize("workers", [0, 1])
def test_any_dataset(workers: int) -> None:
    images, targets = next(training_loader(Minimal(), recipe(workers=workers), batch_size=3, seed=0))
    assert len(images) == 3
    assert sorted(target["image_id"] for target in targets) == [10, 11, 12]
    with pytest.raises(KeyError, match="a defect"):
        next(training_loader(Broken(), recipe(workers=workers), batch_size=1, seed=0))


class Raises(Minimal):
    """Raises an error in a worker."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __getitem__(self, index: int) -> Any:
        raise self.error


class OfTwoArguments(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


class NotRestored(InputError):
    def __init__(self, one: int, two: int) -> None:
        super().__init__("not restored")


def local_error() -> Exception:
    class Local(Exception):
        pass

    return Local("a class that cannot be pickled")


ERRORS = [
    ValueError("a defect"),
    local_error(),
    OfTwoArguments(1, 2),
    NotRestored(1, 2),
    UnicodeDecodeError("utf-8", b"x", 0, 1, "invalid"),
    FileNotFoundError(2, "No such file or directory", "missing.png"),
    MemoryError(),
    RecursionError(),
    StopIteration(),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_any_error_of_a_worker_ends_the_loading(error: BaseException) -> None:
    expected: dict[type, type] = {
        FileNotFoundError: FileNotFoundError,
        MemoryError: LoaderError,
        ValueError: ValueError,
        RecursionError: RecursionError,
    }
    if isinstance(error, StopIteration):
        with pytest.raises(RuntimeError, match="StopIteration"):
            list(evaluation_loader(Raises(error)))
    with pytest.raises(expected.get(type(error), Exception)) as caught:
        list(evaluation_loader(Raises(error), workers=1))
    if isinstance(error, FileNotFoundError):
        assert caught.value.filename == "missing.png"
    elif not isinstance(error, MemoryError):
        assert type(error).__name__ in str(caught.value)  # with the worker's traceback


class Extra(Minimal):
    """Has a value in its targets that only this process can use."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __getitem__(self, index: int) -> Any:
        image, target = super().__getitem__(index)
        return image, {**target, "polygons": self.value}


@pytest.mark.parametrize(
    "value", [lambda: None, threading.Lock(), (n for n in ())], ids=["function", "lock", "generator"]
)
def test_a_target_that_cannot_be_sent(value: object) -> None:
    with pytest.raises(InputError, match=r"image 10.*'polygons'.*data\.workers=0"):
        list(evaluation_loader(Extra(value), workers=1))
    assert len(list(evaluation_loader(Extra(value)))) == 3


def test_no_batch_is_in_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container has 64 MB of it, and torch notices that it is full where nobody can catch the error."""

    def full(*arguments: object) -> None:
        raise RuntimeError("unable to allocate shared memory(shm): No space left on device (28)")

    monkeypatch.setattr(torch.UntypedStorage, "_share_fd_cpu_", full)
    monkeypatch.setattr(torch.UntypedStorage, "_share_filename_cpu_", full)
    monkeypatch.setattr(torch.UntypedStorage, "_new_using_fd_cpu", full)
    assert len(list(evaluation_loader(Minimal(), workers=1))) == 3


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no files in memory on this system")
def test_batches_in_pipes_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> int:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(os, "memfd_create", refuse)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        assert len(list(evaluation_loader(Minimal(), workers=1))) == 3
    (told,) = [warning for warning in caught if "pipes" in str(warning.message)]
    assert told.category is RuntimeWarning


def test_a_daemonic_process_loads_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    with pytest.warns(RuntimeWarning, match=r"data\.workers=2.*daemonic"):
        assert len(list(evaluation_loader(Minimal(), workers=2))) == 3


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
        assert len(list(evaluation_loader(Minimal(), workers=2))) == 3
    gc.collect()
    assert not noise
    assert not multiprocessing.active_children()


class Signals(Minimal):
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
    batches = training_loader(Minimal(), recipe(workers=1, timeout=60), batch_size=1, seed=0)
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
    batches = training_loader(Minimal(), recipe(workers=1, timeout=60), batch_size=1, seed=0)
    next(batches)
    for worker in multiprocessing.active_children():
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGSTOP)
    batches.close()
    assert not multiprocessing.active_children()


def test_an_empty_dataset() -> None:
    class Empty(Minimal):
        def __len__(self) -> int:
            return 0

    with pytest.raises(InputError, match="no images"):
        training_loader(Empty(), recipe(), batch_size=1, seed=0)


@pytest.mark.parametrize("workers", [0, 1])
def test_evaluation(dataset: CocoDataset, workers: int) -> None:
    loader = evaluation_loader(dataset, batch_size=2, workers=workers)
    assert len(loader) == 3
    for _ in range(2):
        assert [[target["image_id"] for target in targets] for _, targets in loader] == [[1, 2], [3, 4], [5]]
    shares = [evaluation_loader(dataset, rank=rank, world_size=7) for rank in range(7)]
    assert [len(share) for share in shares] == [1, 1, 1, 1, 1, 0, 0]
    assert [targets[0]["image_id"] for share in shares for _, targets in share] == [1, 2, 3, 4, 5]
