"""COCO's run lengths (RLE) of masks: computed one mask at a time, and decoded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vovnet.errors import InputError, shown

MASK_THRESHOLD = 0.5
"""A pixel belongs to an object if its mask probability is above this value, as in torchvision's references."""

_BITS = 5  # of a number in each character of the text
_MORE = 0x20  # another character of the same number follows
_FIRST = 48  # the character of 0
_LONGEST = 7  # characters of a number: the difference of two runs of 32 bits


def encode_part(part: NDArray[np.bool_], corner: tuple[int, int], size: tuple[int, int]) -> bytes:
    """Return the compressed RLE counts of a mask of which only a part is given; the rest is 0.

    Equal to what ``pycocotools.mask.encode`` returns for the whole mask, in memory for the part alone.

    Args:
        part: (h, w).
        corner: row and column of the part's first pixel in the mask.
        size: height and width of the mask.
    """
    height, width = size
    rows = part.shape[0]
    # COCO counts along columns. A 0 above and below each of them makes every run of ones start and end in its column.
    columns = np.zeros((part.shape[1], rows + 2), dtype=np.bool_)
    columns[:, 1:-1] = part.T
    changes = np.flatnonzero(columns[:, 1:] != columns[:, :-1])
    column, row = np.divmod(changes, rows + 1)
    positions = (corner[1] + column) * height + corner[0] + row
    # A run that reaches the last row of the mask may go on in the first row of the next column.
    joined = np.flatnonzero(positions[1:-1:2] == positions[2::2])
    positions = np.delete(positions, np.concatenate((2 * joined + 1, 2 * joined + 2)))
    counts = np.diff(positions, prepend=0, append=height * width)
    if counts.size > 1 and counts[-1] == 0:
        counts = counts[:-1]
    return compress(counts)


def compress(counts: NDArray[np.int64]) -> bytes:
    """Return run lengths as COCO's text (pycocotools common/maskApi.c, ``rleToString``).

    From the fourth on, a run is stored as its difference from the run two before. A number has five bits in each
    character, the lowest first, as many as it takes with its sign.

    Args:
        counts: (N,): lengths of the runs, in turn of zeros and of ones; the first may be 0.
    """
    rest = counts.astype(np.int64)
    rest[3:] -= counts[1:-2]
    characters = []
    going_on = np.ones(rest.shape, dtype=np.bool_)
    while going_on.any():
        low = rest & (2**_BITS - 1)
        rest = rest >> _BITS
        negative = (low & (2 ** (_BITS - 1))) != 0
        after = going_on & (rest != np.where(negative, -1, 0))
        characters.append(np.where(going_on, low + np.where(after, _MORE, 0) + _FIRST, 0))
        going_on = after
    table = np.array(characters, dtype=np.uint8).reshape(len(characters), -1).T
    return table[table != 0].tobytes()


def expand(text: bytes) -> NDArray[np.int64]:
    """Return the run lengths (N,) of COCO's text; the inverse of :func:`compress`.

    Raises:
        InputError: the text is not one that :func:`compress` returns.
    """
    digits = np.frombuffer(text, dtype=np.uint8).astype(np.int64) - _FIRST
    ends = np.flatnonzero((digits & _MORE) == 0)
    lengths = np.diff(ends, prepend=-1)
    strange = digits.size and (digits.min() < 0 or digits.max() >= 2 * _MORE)
    if strange or int(lengths.sum()) != digits.size or lengths.max(initial=0) > _LONGEST:
        raise InputError(f"segmentation.counts: expected COCO's compressed run lengths, got {shown(text)}")
    if not ends.size:
        return np.zeros(0, dtype=np.int64)
    starts = ends - lengths + 1
    places = _BITS * (np.arange(digits.size) - np.repeat(starts, lengths))
    counts = np.add.reduceat((digits & (_MORE - 1)) << places, starts)
    negative = (digits[ends] & (2 ** (_BITS - 1))) != 0
    counts -= np.where(negative, np.int64(1) << (_BITS * lengths), 0)
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts


def decode(segmentation: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return the mask (H, W) of a compressed RLE: ``size`` [height, width], and ``counts`` as text or bytes.

    Raises:
        InputError: the run lengths do not fill the size.
    """
    height, width = segmentation["size"]
    counts = _checked_counts(segmentation)
    values = np.arange(counts.size) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T


def _checked_counts(segmentation: Mapping[str, Any]) -> NDArray[np.int64]:
    height, width = segmentation["size"]
    text = segmentation["counts"]
    counts = expand(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)
    if (counts < 0).any() or (counts > height * width).any() or counts.sum() != height * width:
        raise InputError(f"segmentation: its run lengths do not fill {height} rows of {width} pixels")
    return counts


def decode_part(segmentation: Mapping[str, Any]) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """Return the part (h, w) of a mask that is not 0, and row and column of its first pixel; :func:`decode` cut.

    It takes memory for the columns that the object covers, not for the image.

    Raises:
        InputError: the run lengths do not fill the size.
    """
    height, _ = segmentation["size"]
    counts = _checked_counts(segmentation)
    ends = np.cumsum(counts)
    ones = np.flatnonzero(counts[1::2]) * 2 + 1
    if not ones.size:
        return np.zeros((0, 0), dtype=np.bool_), (0, 0)
    first, last = int(ends[ones[0] - 1]) // height, (int(ends[ones[-1]]) - 1) // height
    inside = np.clip(ends, first * height, (last + 1) * height) - first * height
    values = np.arange(counts.size) % 2 == 1
    columns = np.repeat(values, np.diff(inside, prepend=0)).reshape(-1, height)
    rows = np.flatnonzero(columns.any(axis=0))
    return columns[:, rows[0] : rows[-1] + 1].T, (int(rows[0]), first)


def moved_mask(counts: bytes, size: tuple[int, int], corner: tuple[int, int], whole: tuple[int, int]) -> bytes:
    """Return the compressed RLE counts, in an image, of a mask that was found in a part of it.

    Args:
        counts: of the mask in the part.
        size: height and width of the part.
        corner: row and column of its first pixel in the image.
        whole: height and width of the image.
    """
    part, (top, left) = decode_part({"size": size, "counts": counts})
    return encode_part(part, (corner[0] + top, corner[1] + left), whole)


def joined_masks(masks: Sequence[bytes], size: tuple[int, int]) -> bytes:
    """Return the compressed RLE counts of the union of masks of an image of ``size``; two of them are in memory."""
    if len(masks) == 1:
        return masks[0]
    union, corner = np.zeros((0, 0), dtype=np.bool_), (0, 0)
    for mask in masks:
        part, place = decode_part({"size": size, "counts": mask})
        if part.size:
            union, corner = _joined(union, corner, part, place) if union.size else (part, place)
    return encode_part(union, corner, size) if union.size else masks[0]


def _joined(
    one: NDArray[np.bool_], corner: tuple[int, int], other: NDArray[np.bool_], place: tuple[int, int]
) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """Return the union of two parts of a mask, and row and column of its first pixel."""
    top, left = min(corner[0], place[0]), min(corner[1], place[1])
    bottom = max(corner[0] + one.shape[0], place[0] + other.shape[0])
    right = max(corner[1] + one.shape[1], place[1] + other.shape[1])
    union = one
    if union.shape != (bottom - top, right - left):
        union = np.zeros((bottom - top, right - left), dtype=np.bool_)
        union[corner[0] - top : corner[0] - top + one.shape[0], corner[1] - left : corner[1] - left + one.shape[1]] = (
            one
        )
    row, column = place[0] - top, place[1] - left
    union[row : row + other.shape[0], column : column + other.shape[1]] |= other
    return union, (top, left)
