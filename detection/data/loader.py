"""Load batches of a dataset in worker processes. An error in a worker keeps its one-line message."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from vovnet.detection.config.schema import DataRecipe
from vovnet.detection.data.protocol import DetectionDataset, Target
from vovnet.detection.data.sampler import BatchStream, SampleKey, aspect_groups
from vovnet.detection.data.transforms import Sample, TransformedDataset, train_transforms
from vovnet.errors import InputError

_SECONDS_AFTER_SIGTERM = 60

Batch = tuple[list[Tensor], list[Target]]
"""Images uint8 (C, H, W), each with its own size, and their targets as plain tensors."""


def training_loader(
    dataset: DetectionDataset,
    data: DataRecipe,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    pin_memory: bool | None = None,
) -> Iterator[Batch]:
    """Return an endless iterator over training batches. ``seed`` determines their order and random transforms.

    Args:
        dataset: A dataset with the protocol of :mod:`vovnet.detection.data`.
        data: The recipe's transforms, number of workers and grouping by aspect ratio.
        batch_size: The number of images in a batch of this process.
        seed: The same seed gives the same batches with any number of workers.
        rank: The rank of this process.
        world_size: The number of processes that share the data; see :class:`vovnet.detection.data.sampler.BatchStream`.
        start: The number of batches that this process has already taken, if a run is resumed.
        pin_memory: Pin the batches' memory; None does if there is a GPU.

    Raises:
        InputError: The dataset is empty, or (from the iterator, also with workers) a sample cannot be used.
    """
    groups = aspect_groups(dataset) if data.aspect_ratio_groups else [0] * len(dataset)
    stream = BatchStream(groups, batch_size, seed=seed, rank=rank, world_size=world_size, start=start)
    return batch_loader(dataset, train_transforms(data), stream, workers=data.workers, pin_memory=pin_memory)


def batch_loader(
    dataset: DetectionDataset,
    transforms: Callable[..., Any],
    stream: Sampler[list[SampleKey]],
    *,
    workers: int,
    pin_memory: bool | None = None,
) -> Iterator[Batch]:
    """Load and transform the batches of a stream in ``workers`` processes."""
    samples = _Caught(TransformedDataset(dataset, transforms))
    return _batches(_loader(samples, workers, pin_memory, batch_sampler=stream))


def evaluation_loader(
    dataset: DetectionDataset,
    *,
    batch_size: int = 1,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool | None = None,
) -> EvaluationBatches:
    """Return the batches of one process in the dataset's order. All processes together have each image once.

    Args:
        dataset: A dataset with the protocol of :mod:`vovnet.detection.data`.
        batch_size: The number of images in a batch.
        workers: The number of loader processes.
        rank: The rank of this process.
        world_size: The number of processes that share the data.
        pin_memory: Pin the batches' memory; None does if there is a GPU.
    """
    indices = range(rank, len(dataset), world_size)
    samples = _Caught(TransformedDataset(dataset))  # In evaluation mode the detector scales images itself.
    return EvaluationBatches(_loader(samples, workers, pin_memory, batch_size=batch_size, sampler=indices))


class EvaluationBatches:
    """The result of :func:`evaluation_loader`: batches that can be iterated repeatedly, with a length."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self._loader = loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        return _batches(self._loader)


def _loader(samples: Dataset[Any], workers: int, pin_memory: bool | None, **order: Any) -> DataLoader[Any]:
    return DataLoader(
        samples,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_leave_interrupts_to_the_parent,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        # The loader draws a seed when it starts. Its own generator keeps the random state of training as it is.
        generator=torch.Generator().manual_seed(0),
        **order,
    )


def _leave_interrupts_to_the_parent(worker: int) -> None:
    """Ignore in a worker the signals that stop a training, and leave the process group that torchrun signals.

    Training finishes its iteration after a signal, and needs its workers for that. SLURM and systemd send a signal to
    every process, therefore SIGTERM ends a worker only after a while. If training itself dies, torch's watchdog ends
    the workers.
    """
    for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_SECONDS_AFTER_SIGTERM))
    if hasattr(os, "setpgrp"):  # Windows has no process groups
        os.setpgrp()


class _Caught(Dataset[Any]):
    """Return an ``InputError`` as a value. A worker's exception would arrive with its traceback in the message."""

    def __init__(self, samples: TransformedDataset) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: int | SampleKey) -> Sample | str:
        try:
            return self.samples[key]
        except InputError as error:
            return str(error)


def _collate(samples: Sequence[Sample | str]) -> Any:
    """Return lists of images and targets, or the text of an error.

    Small tensors are sent as arrays, by value: a shared tensor needs a file descriptor, and a process has few of them.
    """
    for sample in samples:
        if isinstance(sample, str):
            return sample
    images, targets = zip(*samples, strict=True)
    return (
        [image.as_subclass(Tensor) for image in images],
        [{key: _packed(key, value) for key, value in target.items()} for target in targets],
    )


def _packed(key: str, value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.as_subclass(Tensor)
    return value if key == "masks" else _Small(value.numpy())


class _Small:
    """An array that the loader does not move into shared memory."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self.array = array


def _batches(loader: DataLoader[Any]) -> Iterator[Batch]:
    for batch in loader:
        if isinstance(batch, str):
            raise InputError(batch)
        images, targets = batch
        yield list(images), [{key: _unpacked(value) for key, value in target.items()} for target in targets]


def _unpacked(value: Any) -> Any:
    return torch.from_numpy(value.array) if isinstance(value, _Small) else value
