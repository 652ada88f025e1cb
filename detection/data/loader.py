"""From a dataset to batches: loader processes, and errors that keep their one line on the way out of them."""

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
from vovnet.detection.data.sampler import BatchStream, Draw, aspect_groups, evaluation_indices
from vovnet.detection.data.transforms import TransformedDataset, eval_transforms, train_transforms
from vovnet.errors import InputError

Batch = tuple[list[Tensor], list[dict[str, Any]]]
"""Images uint8 (C, H, W), each of its own size, and their targets as plain tensors."""


def training_loader(
    dataset: Any,
    data: DataRecipe,
    *,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    start: int = 0,
    pin_memory: bool | None = None,
) -> Iterator[Batch]:
    """Batches of training samples without end, in an order and with random transforms that ``seed`` fixes.

    Args:
        dataset: follows the protocol of :mod:`vovnet.detection.data`.
        data: which transforms, how many workers, whether batches are of one aspect.
        batch_size: images in a batch of this process.
        seed: the same seed gives the same batches, whatever the number of workers.
        rank: of this process.
        world_size: how many processes share the data; see :class:`vovnet.detection.data.sampler.BatchStream`.
        start: how many batches this process has had already, in a run that goes on.
        pin_memory: None does where there is a GPU.

    Raises:
        InputError: the dataset is empty, or (from the iterator) a sample cannot be used; in one line, from workers too.
    """
    groups = aspect_groups(dataset) if data.aspect_ratio_groups else [0] * len(dataset)
    stream = BatchStream(groups, batch_size, seed=seed, rank=rank, world_size=world_size, start=start)
    return batch_loader(dataset, train_transforms(data), stream, workers=data.workers, pin_memory=pin_memory)


def batch_loader(
    dataset: Any,
    transforms: Callable[..., Any],
    stream: Sampler[list[Draw]],
    *,
    workers: int,
    pin_memory: bool | None = None,
) -> Iterator[Batch]:
    """The batches that a stream names, loaded and transformed in ``workers`` processes."""
    samples = _Caught(TransformedDataset(dataset, transforms))
    return _batches(_loader(samples, workers, pin_memory, batch_sampler=stream))


def evaluation_loader(
    dataset: Any,
    *,
    batch_size: int = 1,
    workers: int = 0,
    rank: int = 0,
    world_size: int = 1,
    pin_memory: bool | None = None,
) -> EvaluationBatches:
    """Batches of one process's share of a dataset, in its order; all processes together have each image once.

    Args:
        dataset: follows the protocol of :mod:`vovnet.detection.data`.
        batch_size: images in a batch.
        workers: loader processes.
        rank: of this process.
        world_size: how many processes share the data.
        pin_memory: None does where there is a GPU.
    """
    indices = evaluation_indices(len(dataset), rank, world_size)
    samples = _Caught(TransformedDataset(dataset, eval_transforms()))
    return EvaluationBatches(_loader(samples, workers, pin_memory, batch_size=batch_size, sampler=indices))


class EvaluationBatches:
    """What :func:`evaluation_loader` returns: can be iterated again and again, and knows its length in batches."""

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
        # The loader draws a seed when it starts. From this generator, it leaves the training's random state alone.
        generator=torch.Generator().manual_seed(0),
        **order,
    )


def _leave_interrupts_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal, and torchrun signals the whole process group; training ends with an
    iteration that needs its workers. Should it die itself, torch's watchdog ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.setpgrp()


class _Caught(Dataset[Any]):
    """Gives an ``InputError`` back as a value: a worker's exception would arrive with its traceback in the message."""

    def __init__(self, samples: TransformedDataset) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: int | Draw) -> Any:
        try:
            return self.samples[draw]
        except InputError as error:
            return str(error)


def _collate(samples: Sequence[Any]) -> Any:
    """Lists of images and targets, or the text of an error.

    Small tensors travel as arrays, by value: each shared tensor takes a file descriptor, and a process has few of them.
    """
    for sample in samples:
        if isinstance(sample, str):
            return sample
    images = [image.as_subclass(Tensor) for image, _ in samples]
    return images, [{key: _packed(key, value) for key, value in target.items()} for _, target in samples]


def _packed(key: str, value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    value = value.as_subclass(Tensor)
    return value if key == "masks" else _Small(value.numpy())


class _Small:
    """An array that the loader must not turn into shared memory."""

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
