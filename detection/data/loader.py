"""Loaders of batches for training and evaluation, with or without worker processes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Any

from torch.utils.data import Sampler

from vovnet.detection.config.data import DataRecipe
from vovnet.detection.data.collation import Batch
from vovnet.detection.data.datasets import checked
from vovnet.detection.data.mixing import MixedDataset, closing_stream, mixes
from vovnet.detection.data.protocol import DetectionDataset
from vovnet.detection.data.sampler import BatchStream, SampleKey, aspect_groups, repeat_factors
from vovnet.detection.data.transforms import TransformedDataset, train_transforms
from vovnet.detection.data.workers import load_batches


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
    if data.crop is not None:
        dataset = dataset.with_crops(data.crop)
    groups = aspect_groups(dataset) if data.aspect_ratio_groups else [0] * len(dataset)
    repeats = None if data.repeat_threshold is None else repeat_factors(dataset, data.repeat_threshold)
    stream = BatchStream(
        groups, batch_size, seed=seed, rank=rank, world_size=world_size, start=start, stop=stop, repeats=repeats
    )
    transforms = train_transforms(data)
    if mixes(data):
        mixed = MixedDataset(dataset, transforms, data.mosaic, data.copy_paste)
        order = closing_stream(stream, data, stop)
        return load_batches(mixed, data.workers, data.timeout, pin_memory=pin_memory, batch_sampler=order)
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
    return load_batches(samples, workers, timeout, pin_memory=pin_memory, batch_sampler=stream)


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
        lambda: load_batches(samples, workers, timeout, pin_memory=pin_memory, batch_size=batch_size, sampler=indices),
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
