"""The order of the images in the reference's training."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch

from vovnet.detection.data.sampler import BatchStream, SampleKey, sample_seed
from vovnet.errors import InputError


class LegacyBatchStream(BatchStream):
    """A stream of batches whose images belong to one group each, in the order of the reference's training.

    Reference data/build.py:70-105,143-146 and data/samplers. Each process goes through the data epoch by epoch. It
    shuffles all images, seeded by the number of the iteration at which its epoch starts; repeats the first of them to
    get a multiple of the number of processes; takes its contiguous share; and groups that by :func:`grouped_batches`.
    The last batches of an epoch may be small. Epochs may end at different iterations in different processes.

    Deviations: ``seed`` is added to the seeds of the shuffles; the reference has no such seed (0 gives its order). A
    resumed run continues the stream exactly, while the reference starts a new epoch, seeded by the iteration. One
    process can take the place of several of the reference's, one after the other in each iteration (``passes``), and
    then gets the images that they got.

    Args:
        groups: The group of each image, such as :func:`vovnet.detection.data.sampler.aspect_groups` returns. They equal
            the reference's (height / width < 1, or not).
        batch_size: The number of images in a batch, for one process and one forward pass.
        seed: The seed of the order and of the images' own seeds.
        rank: The rank of this process, in 0..world_size - 1.
        world_size: The number of processes that share the data.
        start: The number of batches that this process has already taken; the stream continues after them.
        stop: The number of batches, counted from 0, after which the stream ends; None never ends.
        passes: The number of batches of an iteration in this process. The process takes the place of the ranks
            ``rank * passes``, … of ``world_size * passes``.
    """

    def __init__(
        self,
        groups: Sequence[int],
        batch_size: int,
        *,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        stop: int | None = None,
        passes: int = 1,
    ) -> None:
        super().__init__(groups, batch_size, seed=seed, rank=rank, world_size=world_size, start=start, stop=stop)
        if passes < 1:
            raise InputError(f"passes: expected the batches of an iteration in this process, got {passes}")
        self.passes = passes

    def __iter__(self) -> Iterator[list[SampleKey]]:
        ranks = range(self.rank * self.passes, (self.rank + 1) * self.passes)
        iterations = zip(*(self._batches_of(rank) for rank in ranks), strict=True)
        batches = itertools.chain.from_iterable(iterations)
        for batch, iteration in itertools.islice(batches, self.start, self.stop):
            yield [(index, sample_seed(self.seed, iteration, index)) for index in batch]

    def _batches_of(self, rank: int) -> Iterator[tuple[list[int], int]]:
        """Yield the batches of one of the reference's processes, each with the iteration at which its epoch started."""
        iteration = 0
        while True:
            batches = grouped_batches(self._share(iteration, rank), self.groups, self.batch_size)
            for batch in batches:
                yield batch, iteration
            iteration += len(batches)

    def _share(self, iteration: int, rank: int) -> list[int]:
        """Return a process's images in the epoch of an iteration. Reference data/samplers/distributed.py."""
        generator = torch.Generator().manual_seed(iteration + self.seed)
        order = torch.randperm(len(self.groups), generator=generator)
        length = -(-len(order) // (self.world_size * self.passes))
        return order[torch.arange(rank * length, (rank + 1) * length) % len(order)].tolist()


def grouped_batches(order: Sequence[int], groups: Sequence[int], batch_size: int) -> list[list[int]]:
    """Return ordered images as batches of one group each; the last batch of a group may be small.

    A batch has the place of its first image. Reference data/samplers/grouped_batch_sampler.py, without
    ``drop_uneven``.
    """
    batches: list[list[int]] = []
    filling: dict[int, list[int]] = {}
    for index in order:
        batch = filling.get(groups[index])
        if batch is None or len(batch) == batch_size:
            batch = filling[groups[index]] = []
            batches.append(batch)
        batch.append(index)
    return batches
