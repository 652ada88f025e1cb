"""Find images that a dataset has twice: the same pixels, or nearly the same image (smaller, recompressed, brighter).

Nearly the same is told by a difference hash (N. Krawetz, "Kind of Like That", 2013): an image is shrunk to grey 17 × 16
pixels, and each bit says whether a pixel is brighter than its left neighbour.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from PIL import Image

_SIDE = 16
_BITS = _SIDE * _SIDE
NEAR = 15
"""Hashes of two images that differ in no more bits than this are of nearly the same image."""
_LEAST_SET = 24
"""Fewer differing neighbours, or nearly all alike, are an image without detail, such as an empty slide."""
_BANDS = 16
_MOST_ALIKE = 100
"""No more images of one band are compared with each other: a band that so many share says nothing."""


@dataclass(frozen=True)
class Fingerprint:
    """What is compared of an image."""

    split: str
    name: str
    pixels: bytes
    """A digest of its size and pixels."""
    bits: int
    """The difference hash."""

    @property
    def has_detail(self) -> bool:
        """False for an image that is nearly of one colour, whose hash says little."""
        return _LEAST_SET <= self.bits.bit_count() <= _BITS - _LEAST_SET


@dataclass(frozen=True)
class Twins:
    """Two images that are the same, or nearly."""

    first: Fingerprint
    second: Fingerprint
    distance: int
    """Differing bits of the hashes; 0 for the same pixels."""
    exact: bool

    @property
    def across(self) -> bool:
        """True if they are of two splits."""
        return self.first.split != self.second.split


def fingerprint(image: Image.Image, split: str, name: str) -> Fingerprint:
    """Return what is compared of a decoded image."""
    grey = np.asarray(image.convert("L").resize((_SIDE + 1, _SIDE), Image.Resampling.BOX), dtype=np.int16)
    brighter = (grey[:, 1:] > grey[:, :-1] + 1).ravel()  # a step of 1 is rounding
    digest = hashlib.blake2b(f"{image.size}{image.mode}".encode() + image.tobytes(), digest_size=16).digest()
    return Fingerprint(split, name, digest, int.from_bytes(np.packbits(brighter).tobytes(), "big"))


def find_twins(images: Sequence[Fingerprint]) -> list[Twins]:
    """Return the pairs of images that are the same, or nearly; each image once with the first of its like.

    Pairs across splits come first, then the same pixels, then by distance.
    """
    found: dict[tuple[int, int], Twins] = {}
    for one, other in _same(images):
        found[one, other] = Twins(images[one], images[other], 0, True)
    for one, other in _candidates(images):
        distance = (images[one].bits ^ images[other].bits).bit_count()
        if distance <= NEAR and (one, other) not in found:
            found[one, other] = Twins(images[one], images[other], distance, False)
    ordered = sorted(found.items(), key=lambda item: (not item[1].across, not item[1].exact, item[1].distance, item[0]))
    seen: set[tuple[int, bool]] = set()
    kept = []
    for (_, other), twins in ordered:
        if (other, twins.across) not in seen:
            seen.add((other, twins.across))
            kept.append(twins)
    return kept


def _same(images: Sequence[Fingerprint]) -> Iterator[tuple[int, int]]:
    groups: dict[bytes, list[int]] = defaultdict(list)
    for position, one in enumerate(images):
        groups[one.pixels].append(position)
    for group in groups.values():
        yield from ((group[0], other) for other in group[1:])
        # The first of a group may be of the same split; leaks are found with the first of every other.
        others = {images[position].split: position for position in reversed(group)}
        yield from _ordered(combinations(sorted(others.values()), 2))


def _candidates(images: Sequence[Fingerprint]) -> set[tuple[int, int]]:
    """Return pairs that share a band of their hashes: 15 differing bits leave one of 16 alike."""
    pairs: set[tuple[int, int]] = set()
    width = _BITS // _BANDS
    detailed = [position for position, one in enumerate(images) if one.has_detail]
    for band in range(_BANDS):
        groups: dict[int, list[int]] = defaultdict(list)
        for position in detailed:
            groups[images[position].bits >> band * width & (1 << width) - 1].append(position)
        for group in groups.values():
            if len(group) <= _MOST_ALIKE:
                pairs.update(_ordered(combinations(group, 2)))
    return pairs


def _ordered(pairs: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    return ((min(pair), max(pair)) for pair in pairs)
