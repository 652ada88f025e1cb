"""The order of the images in training: a stream of batches that depends only on a seed."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
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
        repeats: How often each image comes in an epoch, on average, at least 1, such as :func:`repeat_factors` returns;
            None is once. A fraction is its probability of coming once more. Each time it has a seed of its own.
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
        repeats: Sequence[float] | None = None,
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
        self.repeats = None if repeats is None else torch.tensor(repeats, dtype=torch.float64)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        own = itertools.islice(self._batches(), self.rank, None, self.world_size)
        for batch, times in itertools.islice(own, self.start, self.stop):
            yield [(i, sample_seed(self.seed, epoch, i, copy)) for i, (epoch, copy) in zip(batch, times, strict=True)]

    def _batches(self) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
        """Yield the indices of each batch's images, and for each its epoch and how often it came before in that epoch.

        No seed is hashed, so that skipping is fast.
        """
        waiting: dict[int, tuple[list[int], list[tuple[int, int]]]] = {group: ([], []) for group in self.groups}
        epoch = 0
        while True:
            for index, copy in self._epoch(epoch):
                group = self.groups[index]
                indices, times = waiting[group]
                indices.append(index)
                times.append((epoch, copy))
                if len(indices) == self.batch_size:
                    yield waiting[group]
                    waiting[group] = ([], [])
            epoch += 1

    def _epoch(self, epoch: int) -> Iterator[tuple[int, int]]:
        """Yield the images of an epoch in its order, and how often each has come before in it."""
        generator = torch.Generator().manual_seed(sample_seed(self.seed, epoch, -1))
        images = torch.arange(len(self.groups))
        if self.repeats is not None:
            more = torch.rand(len(images), generator=generator, dtype=torch.float64) < self.repeats % 1
            images = images.repeat_interleave(self.repeats.to(torch.int64) + more)
        order = images[torch.randperm(len(images), generator=generator)].tolist()
        if self.repeats is None:
            yield from ((index, 0) for index in order)
            return
        came = Counter[int]()
        for index in order:
            yield index, came[index]
            came[index] += 1


def sample_seed(seed: int, epoch: int, index: int, copy: int = 0) -> int:
    """Return a seed in 0..2^63 - 1 for one image in one epoch, the same in every process and worker.

    Args:
        seed: The seed of the stream.
        epoch: The epoch, from 0.
        index: The image's index.
        copy: How often the image has come before in this epoch.
    """
    text = f"{seed} {epoch} {index}" + (f" {copy}" if copy else "")
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def repeat_factors(dataset: DetectionDataset, threshold: float) -> list[float]:
    """Return how often each image should come in an epoch, so that rare categories come more often.

    The factor of a category that is on the fraction f of the images is max(1, sqrt(threshold / f)); that of an image is
    the largest of its categories', and 1 without objects (repeat-factor sampling of LVIS, arXiv:1908.03195).

    Args:
        dataset: A dataset with ``image_labels``; see :class:`vovnet.detection.data.DetectionDataset`.
        threshold: The fraction of the images below which a category is rare.

    Raises:
        InputError: The dataset does not know the labels of its images.
    """
    image_labels = getattr(dataset, "image_labels", None)
    if image_labels is None:
        raise InputError(
            "data.repeat_threshold: the dataset has no image_labels(i), the labels of image i without decoding it; add "
            "it, or set the threshold to null"
        )
    found = [frozenset(int(label) for label in image_labels(index)) for index in range(len(dataset))]
    images = Counter(label for labels in found for label in labels)
    factor = {label: max(1.0, math.sqrt(threshold * len(found) / count)) for label, count in images.items()}
    return [max((factor[label] for label in labels), default=1.0) for labels in found]


def aspect_groups(dataset: DetectionDataset) -> list[int]:
    """Return 0 for each wide image and 1 for each other one (height >= width).

    Batches of one group need little padding. If the dataset has no ``image_size``, all images are in group 0.
    """
    image_size = getattr(dataset, "image_size", None)
    if image_size is None:
        return [0] * len(dataset)
    sizes = (image_size(index) for index in range(len(dataset)))
    return [int(height >= width) for height, width in sizes]
