"""Which images come together, and when: the reference's order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch

from vovnet.detection.data.sampler import BatchStream, SampleKey, sample_seed
from vovnet.errors import InputError


class LegacyBatchStream(BatchStream):
    """An endless stream of batches whose images share a group, in the order of the reference's training.

    Reference data/build.py:70-105,143-146 and data/samplers. Each process goes through the data pass by pass: it
    shuffles all images, seeded by the number of the iteration at which its pass starts; fills up with the first of them
    to a multiple of the processes; takes its contiguous share; and groups that by :func:`grouped_batches`, so that the
    last batches of a pass may be small. Passes may end at different iterations in different processes.

    Deviations: to the shuffles' seeds ``seed`` is added, which the reference does not have (0 gives its order). When a
    run resumes, the stream goes on exactly where it was, where the reference starts a new pass, seeded by the
    iteration. One process may play several of the reference's, one after the other in each iteration (``passes``), and
    then sees what they saw.

    Args:
        groups: each image's group, such as :func:`vovnet.detection.data.sampler.aspect_groups` gives, which equal the
            reference's (height / width < 1, or not); only equal ones share a batch.
        batch_size: images in a batch, of one process and one forward pass.
        seed: of the order, and of the images' own seeds.
        rank: of this process, in 0..world_size - 1.
        world_size: how many processes share the data.
        start: how many batches this process has had already: the stream goes on exactly there.
        passes: batches of an iteration in this process; it plays the ranks ``rank * passes``, … of
            ``world_size * passes``.
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
        passes: int = 1,
    ) -> None:
        super().__init__(groups, batch_size, seed=seed, rank=rank, world_size=world_size, start=start)
        if passes < 1:
            raise InputError(f"passes: expected the batches of an iteration in this process, got {passes}")
        self.passes = passes

    def __iter__(self) -> Iterator[list[SampleKey]]:
        played = range(self.rank * self.passes, (self.rank + 1) * self.passes)
        iterations = zip(*(self._batches_of(rank) for rank in played), strict=True)
        for batch, iteration in itertools.islice(itertools.chain.from_iterable(iterations), self.start, None):
            yield [(index, sample_seed(self.seed, iteration, index)) for index in batch]

    def _batches_of(self, rank: int) -> Iterator[tuple[list[int], int]]:
        """One of the reference's processes: batches, and the iteration at which their pass started."""
        iteration = 0
        while True:
            batches = grouped_batches(self._share(iteration, rank), self.groups, self.batch_size)
            for batch in batches:
                yield batch, iteration
            iteration += len(batches)

    def _share(self, iteration: int, rank: int) -> list[int]:
        """A process's images of the pass that starts at an iteration. Reference data/samplers/distributed.py."""
        generator = torch.Generator().manual_seed(iteration + self.seed)
        order = torch.randperm(len(self.groups), generator=generator)
        length = -(-len(order) // (self.world_size * self.passes))
        return order[torch.arange(rank * length, (rank + 1) * length) % len(order)].tolist()


def grouped_batches(order: Sequence[int], groups: Sequence[int], batch_size: int) -> list[list[int]]:
    """Images in an order, put into batches of one group each; a group's last batch may be small.

    A batch stands where its first image stood. Reference data/samplers/grouped_batch_sampler.py, without
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
