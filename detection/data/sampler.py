"""Which images come together, and when: a stream of batches that is a pure function of a seed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import Sampler

from vovnet.errors import InputError

Draw = tuple[int, int]
"""An image's index, and the seed of the random numbers that its transforms draw."""


class BatchStream(Sampler[list[Draw]]):
    """An endless stream of batches whose images share a group, for training that counts iterations.

    The stream goes through the data pass by pass, each pass in an order of its own. A batch is given out as soon as a
    group has enough images; what remains of a group at the end of a pass waits for images of the next one. So no image
    is left out of a pass or repeated in it, though those of a rare group may have to wait for company. Batch k of the
    stream goes to the process of rank k mod ``world_size``.

    Args:
        groups: each image's group, such as :func:`aspect_groups` gives; only equal ones share a batch.
        batch_size: images in a batch, of one process and one forward pass.
        seed: of the order, and of the images' own seeds.
        rank: of this process, in 0..world_size - 1.
        world_size: how many processes share the stream.
        start: how many batches this process has had already: the stream goes on exactly there.
    """

    def __init__(
        self, groups: Sequence[int], batch_size: int, *, seed: int, rank: int = 0, world_size: int = 1, start: int = 0
    ) -> None:
        if not len(groups):
            raise InputError("training data: the dataset has no images")
        if batch_size < 1:
            raise InputError(f"batch size: expected at least one image for each process and pass, got {batch_size}")
        if not 0 <= rank < world_size:
            raise InputError(f"rank: expected 0..{world_size - 1}, got {rank}")
        if start < 0:
            raise InputError(f"start: expected the number of batches already taken, got {start}")
        self.groups, self.batch_size, self.seed = list(groups), batch_size, seed
        self.rank, self.world_size, self.start = rank, world_size, start

    def __iter__(self) -> Iterator[list[Draw]]:
        first = self.start * self.world_size
        for number, (batch, epochs) in enumerate(self._batches()):
            if number >= first and number % self.world_size == self.rank:
                yield [(i, draw_seed(self.seed, epoch, i)) for i, epoch in zip(batch, epochs, strict=True)]

    def _batches(self) -> Iterator[tuple[list[int], list[int]]]:
        """Images' indices and the passes that they are of. Skipped batches cost microseconds, as no seed is hashed."""
        waiting: dict[int, tuple[list[int], list[int]]] = {group: ([], []) for group in self.groups}
        epoch = 0
        while True:
            generator = torch.Generator().manual_seed(draw_seed(self.seed, epoch, -1))
            for index in torch.randperm(len(self.groups), generator=generator).tolist():
                group = self.groups[index]
                indices, epochs = waiting[group]
                indices.append(index)
                epochs.append(epoch)
                if len(indices) == self.batch_size:
                    yield waiting[group]
                    waiting[group] = ([], [])
            epoch += 1


def draw_seed(seed: int, epoch: int, index: int) -> int:
    """A seed in 0..2^63 - 1 for one image in one pass: the same in whichever process and worker it is drawn."""
    digest = hashlib.blake2b(f"{seed} {epoch} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def aspect_groups(dataset: Any) -> list[int]:
    """0 for wide images and 1 for the others (height >= width): batches of one group need little padding.

    All images are one group where the dataset has no ``image_size``.
    """
    if not hasattr(dataset, "image_size"):
        return [0] * len(dataset)
    sizes = (dataset.image_size(index) for index in range(len(dataset)))
    return [int(height >= width) for height, width in sizes]


def evaluation_indices(length: int, rank: int = 0, world_size: int = 1) -> range:
    """The images of one process: all processes together have each image once."""
    return range(rank, length, world_size)
