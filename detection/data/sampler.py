"""The order of the images in training: a stream of batches that depends only on a seed."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from vovnet.detection.data.protocol import DetectionDataset
from vovnet.errors import InputError

SampleKey = tuple[int, int]
"""An image's index and the seed of its random transforms."""


class BatchStream(Sampler[list[SampleKey]]):
    """A stream of batches whose images belong to one group each, for training that counts iterations.

    The stream goes through the data epoch by epoch, each in its own order. A batch is returned as soon as a group has
    enough images. Images that remain at the end of an epoch wait for images of the next one. No image is left out of an
    epoch or repeated in it, but images of a rare group may be returned later. Batch k of the stream belongs to the
    process with rank k mod ``world_size``.

    Args:
        groups: The group of each image, such as :func:`aspect_groups` returns.
        batch_size: The number of images in a batch, for one process and one forward pass.
        seed: The seed of the order and of the images' own seeds.
        rank: The rank of this process, in 0..world_size - 1.
        world_size: The number of processes that share the stream.
        start: The number of batches that this process has already taken; the stream continues after them.
        stop: The number of batches, counted from 0, after which the stream ends, so that loader processes load no batch
            that nobody takes; None never ends.
    """

    def __init__(
        self,
        groups: Sequence[int],
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        start: int = 0,
        stop: int | None = None,
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
        self.stop = None if stop is None else max(start, stop)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        own = itertools.islice(self._batches(), self.rank, None, self.world_size)
        for batch, epochs in itertools.islice(own, self.start, self.stop):
            yield [(i, sample_seed(self.seed, epoch, i)) for i, epoch in zip(batch, epochs, strict=True)]

    def _batches(self) -> Iterator[tuple[list[int], list[int]]]:
        """Yield the indices of each batch's images and their epochs. No seed is hashed, so that skipping is fast."""
        waiting: dict[int, tuple[list[int], list[int]]] = {group: ([], []) for group in self.groups}
        epoch = 0
        while True:
            generator = torch.Generator().manual_seed(sample_seed(self.seed, epoch, -1))
            for index in torch.randperm(len(self.groups), generator=generator).tolist():
                group = self.groups[index]
                indices, epochs = waiting[group]
                indices.append(index)
                epochs.append(epoch)
                if len(indices) == self.batch_size:
                    yield waiting[group]
                    waiting[group] = ([], [])
            epoch += 1


def sample_seed(seed: int, epoch: int, index: int) -> int:
    """Return a seed in 0..2^63 - 1 for one image in one epoch, the same in every process and worker."""
    digest = hashlib.blake2b(f"{seed} {epoch} {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def aspect_groups(dataset: DetectionDataset) -> list[int]:
    """Return 0 for each wide image and 1 for each other one (height >= width).

    Batches of one group need little padding. If the dataset has no ``image_size``, all images are in group 0.
    """
    image_size = getattr(dataset, "image_size", None)
    if image_size is None:
        return [0] * len(dataset)
    sizes = (image_size(index) for index in range(len(dataset)))
    return [int(height >= width) for height, width in sizes]
