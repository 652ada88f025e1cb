"""Load batches of a dataset in worker processes, and end in one line when these fail, die or freeze."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vovnet.detection.config.schema import DataRecipe
from vovnet.detection.data.datasets import checked
from vovnet.detection.data.failures import NO_MEMORY, NO_WORKERS, FrozenLoaderError, LoaderError, ended, loader_failures
from vovnet.detection.data.mixing import MixedDataset, closing_stream, mixes
from vovnet.detection.data.protocol import DetectionDataset, Target
from vovnet.detection.data.sampler import BatchStream, SampleKey, aspect_groups, repeat_factors
from vovnet.detection.data.samples import Sample
from vovnet.detection.data.transforms import TransformedDataset, train_transforms
from vovnet.detection.data.transport import PREFETCH, Parcel, pack
from vovnet.errors import InputError, StoppedError, reason

Batch = tuple[list[Tensor], list[Target]]
"""Images, uint8 or float32 in [0, 1], (C, H, W), each with its own size, and their targets as plain tensors."""


def training_loader(
    dataset: DetectionDataset,
    data: DataRecipe,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    stop: int | None = None,
    pin_memory: bool | None = None,
) -> Generator[Batch]:
    """Return an iterator over training batches. ``seed`` determines their order and random transforms.

    Args:
        dataset: A dataset with the protocol of :mod:`vovnet.detection.data`.
        data: The recipe's transforms, number of workers and grouping by aspect ratio.
        batch_size: The number of images in a batch of this process.
        seed: The same seed gives the same batches with any number of workers.
        rank: The rank of this process.
        world_size: The number of processes that share the data; see :class:`vovnet.detection.data.sampler.BatchStream`.
        start: The number of batches that this process has already taken, if a run is resumed.
        stop: The number of batches, counted from 0, after which the iterator ends; None never ends.
        pin_memory: Pin the batches' memory; None does if there is a GPU.

    Raises:
        InputError: The dataset is empty, or (from the iterator, also with workers) a sample cannot be used.
        LoaderError: From the iterator: a worker died, or no batch arrived within ``data.timeout`` seconds.
    """
    dataset = checked(dataset)
    groups = aspect_groups(dataset) if data.aspect_ratio_groups else [0] * len(dataset)
    repeats = None if data.repeat_threshold is None else repeat_factors(dataset, data.repeat_threshold)
    stream = BatchStream(
        groups, batch_size, seed=seed, rank=rank, world_size=world_size, start=start, stop=stop, repeats=repeats
    )
    transforms = train_transforms(data)
    if mixes(data):
        mixed = MixedDataset(dataset, transforms, data.mosaic, data.copy_paste)
        order = closing_stream(stream, data, stop)
        return _batches(mixed, data.workers, data.timeout, pin_memory=pin_memory, batch_sampler=order)
    return batch_loader(dataset, transforms, stream, workers=data.workers, timeout=data.timeout, pin_memory=pin_memory)


def batch_loader(
    dataset: DetectionDataset,
    transforms: Callable[..., Any],
    stream: Sampler[list[SampleKey]],
    *,
    workers: int,
    timeout: float = 0,
    pin_memory: bool | None = None,
) -> Generator[Batch]:
    """Load and transform the batches of a stream in ``workers`` processes; the other arguments are above."""
    samples = TransformedDataset(dataset, transforms)
    return _batches(samples, workers, timeout, pin_memory=pin_memory, batch_sampler=stream)


def evaluation_loader(
    dataset: DetectionDataset,
    *,
    batch_size: int = 1,
    workers: int = 0,
    timeout: float = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool | None = None,
) -> EvaluationBatches:
    """Return the batches of one process in the dataset's order. All processes together have each image once.

    Args:
        dataset: A dataset with the protocol of :mod:`vovnet.detection.data`.
        batch_size: The number of images in a batch.
        workers: The number of loader processes.
        timeout: Seconds to wait for a batch from the workers; 0 waits forever.
        rank: The rank of this process.
        world_size: The number of processes that share the data.
        pin_memory: Pin the batches' memory; None does if there is a GPU.
    """
    dataset = checked(dataset)
    indices = range(rank, len(dataset), world_size)
    samples = TransformedDataset(dataset)  # In evaluation mode the detector scales images itself.
    return EvaluationBatches(
        lambda: _batches(samples, workers, timeout, pin_memory=pin_memory, batch_size=batch_size, sampler=indices),
        -(-len(indices) // batch_size),
    )


class EvaluationBatches:
    """The result of :func:`evaluation_loader`: batches that can be iterated repeatedly, with a length."""

    def __init__(self, start: Callable[[], Generator[Batch]], length: int) -> None:
        self._start = start
        self._length = length
        self._current: Generator[Batch] | None = None

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        self._current = self._start()
        return self._current

    def close(self) -> None:
        """End the workers of an iteration that was left early."""
        if self._current is not None:
            self._current.close()


def _batches(
    samples: TransformedDataset, workers: int, timeout: float, *, pin_memory: bool | None, **order: Any
) -> Generator[Batch]:
    before = multiprocessing.active_children()
    pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
    batches = _started(samples, workers, timeout, {"pin_memory": pin_memory, **order})
    processes = [process for process in multiprocessing.active_children() if process not in before]
    try:
        with loader_failures():
            for batch in batches:
                if isinstance(batch, Exception):
                    raise batch
                yield _opened(batch) if isinstance(batch, Parcel) else batch
                _refuse_dead(processes)
    except FrozenLoaderError:
        _kill(processes)  # before torch waits for each of them
        raise
    except LoaderError:
        _refuse_dead(processes, wait=0.2)  # a batch of a dead worker cannot be opened; this says how it died
        raise
    finally:
        del batches  # torch asks the workers to end
        _kill(processes)


def _opened(parcel: Parcel) -> Batch:
    if parcel.fallback:
        warnings.warn(  # Python shows equal warnings of one line once
            f"batches are sent through pipes, which is slower, because no files in memory can be used "
            f"({parcel.fallback}); {NO_WORKERS}",
            RuntimeWarning,
            stacklevel=2,
        )
    batch: Batch = parcel.unpack()
    return batch


def _started(samples: TransformedDataset, workers: int, timeout: float, options: dict[str, Any]) -> Iterator[Any]:
    """Return the iterator of a DataLoader, in this process if no others can be started."""
    # The loader draws a seed when it starts. Its own generator keeps the random state of training as it is.
    options["generator"] = torch.Generator().manual_seed(0)
    if workers:
        if not multiprocessing.current_process().daemon:
            hook = sys.unraisablehook
            try:
                # torch's iterator cannot be deleted without an error if only some of its workers were started.
                sys.unraisablehook = lambda _: None
                return iter(
                    DataLoader(
                        _InWorker(samples),
                        num_workers=workers,
                        prefetch_factor=PREFETCH,
                        timeout=timeout,
                        collate_fn=_packed,
                        worker_init_fn=_leave_interrupts_to_the_parent,
                        **options,
                    )
                )
            except OSError as error:  # no semaphores in /dev/shm, too many files or processes, no memory
                why = error.strerror or str(error)
            finally:
                sys.unraisablehook = hook
        else:
            why = "this process is daemonic, and such a process may not start others"
        warnings.warn(
            f"data.workers={workers}: no loader processes can be started ({why}); images are loaded in this process",
            RuntimeWarning,
            stacklevel=2,
        )
    return iter(DataLoader(samples, collate_fn=_collated, **options))


def _leave_interrupts_to_the_parent(worker: int) -> None:
    """Ignore in a worker the signals that stop a training, and leave the process group that torchrun signals.

    Training finishes its iteration after a signal, and needs its workers for that. If training itself dies, torch's
    watchdog ends the workers.
    """
    for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        # Blocked, so that this thread receives it, and ignored by threads of libraries, which do not block it.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        threading.Thread(target=_end_by_sigterm_of, args=(os.getppid(),), daemon=True).start()
    if hasattr(os, "setpgrp"):  # Windows has no process groups
        os.setpgrp()


def _end_by_sigterm_of(parent: int) -> None:
    """End this process if its parent sends SIGTERM. Those of SLURM and systemd reach every process of a training."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)


def _refuse_dead(processes: Iterable[BaseProcess], wait: float = 0) -> None:
    """Raise an error for a worker that died, which torch reports only once, and only in the main thread.

    Args:
        processes: The workers.
        wait: Seconds to wait for the end of each.
    """
    for process in processes:
        with contextlib.suppress(RuntimeError):  # raised by torch's handler of SIGCHLD
            process.join(wait)
        if process.exitcode:
            raise ended(process.pid, process.exitcode)


def _kill(processes: Iterable[BaseProcess]) -> None:
    """Kill the workers that still run. A stopped worker does not react to torch's SIGTERM, and would block our exit."""
    for process in processes:
        with contextlib.suppress(RuntimeError):  # raised by torch's handler of SIGCHLD, for the first of its workers
            if process.is_alive():
                process.kill()
                process.join(5)


class _InWorker(Dataset[Any]):
    """The samples as a worker loads them: errors that need no traceback become values, and all can be pickled."""

    def __init__(self, samples: TransformedDataset) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | SampleKey) -> Sample | Exception:
        try:
            return self.samples[key]
        except MemoryError:
            return LoaderError(NO_MEMORY)
        except BaseException as error:
            if isinstance(error, (InputError, StoppedError, OSError)) and _survives(error):
                return error  # torch would put the worker's traceback into the message
            if isinstance(error, Exception) and _survives(type(error)):
                raise
            # torch pickles the class in another thread, or takes the error for the end of the worker.
            raise RuntimeError(f"the dataset raised {type(error).__name__}") from error


def _survives(value: Any) -> bool:
    """Return True if a value can be pickled and restored."""
    try:
        pickle.loads(pickle.dumps(value))
    except Exception:  # whatever its methods raise
        return False
    return True


def _packed(samples: Sequence[Sample | Exception]) -> Parcel | Exception:
    """Return a packed batch, or the error of one of its samples."""
    for sample in samples:
        if isinstance(sample, Exception):
            return sample
    batch = _collated(samples)
    try:
        return pack(batch)
    except MemoryError:
        return LoaderError(NO_MEMORY)
    except Exception as error:  # whatever the values' own methods raise
        return InputError(
            f"{_unsendable(batch)} cannot be sent by a loader process ({reason(error)[:200]}); expected tensors, "
            f"numbers, text, and lists and dictionaries of them; {NO_WORKERS}"
        )


def _unsendable(batch: Batch) -> str:
    """Name the value of a batch that cannot be pickled."""
    for target in batch[1]:
        for key, value in target.items():
            if not _survives(value):
                return f"image {target.get('image_id')}: the target's '{key}' of type {type(value).__name__}"
    return "dataset: a target"


def _collated(samples: Sequence[Any]) -> Batch:
    """Return lists of images and targets, with plain tensors."""
    images, targets = zip(*samples, strict=True)
    return [_plain(image) for image in images], [
        {key: _plain(value) for key, value in target.items()} for target in targets
    ]


def _plain(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, Tensor) else value
