"""Masks that annotation programs write as runs of pixels: CVAT's, and Label Studio's brushes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

MOST_PIXELS = 178_956_970
"""No mask has more pixels: Pillow's limit for images."""

_CHANNELS = 4  # Label Studio stores red, green, blue and alpha, of which alpha is the mask


def cvat_pixels(text: str, width: int, height: int) -> NDArray[np.bool_] | None:
    """Return a mask (height, width) of CVAT: lengths of runs of 0 and 1 in turn, along rows; None if malformed.

    Args:
        text: Numbers with commas between them.
        width: Of the mask, not of the image.
        height: The same.
    """
    try:
        runs = [int(part) for part in text.split(",")]
    except ValueError:
        return None
    if min(runs) < 0 or sum(runs) != width * height or min(width, height) < 1 or width * height > MOST_PIXELS:
        return None
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(height, width)


def brush_pixels(data: object, width: int, height: int) -> NDArray[np.bool_] | None:
    """Return a mask (height, width) of Label Studio's brush, or None if it is malformed.

    Its form is that of https://www.npmjs.com/package/@thi.ng/rle-pack: the number of values, the bits of a value, four
    numbers of bits for lengths, and blocks of either one value that repeats or of as many values as the length says.

    Args:
        data: The list of bytes in ``rle``.
        width: Of the image.
        height: The same.
    """
    count = _CHANNELS * width * height
    if not isinstance(data, list) or min(width, height) < 1 or width * height > MOST_PIXELS:
        return None
    try:
        bits = _Bits(np.array(data, dtype=np.uint8))
        if bits.number(32) != count:
            return None
        size = bits.number(5) + 1
        lengths = [bits.number(4) + 1 for _ in range(4)]
        values = np.zeros(count, dtype=np.uint8)
        position = 0
        while position < count:
            repeats = bits.number(1)
            end = position + 1 + bits.number(lengths[bits.number(2)])
            values[position:end] = bits.numbers(1 if repeats else min(end, count) - position, size)
            position = end
    except (ValueError, OverflowError, TypeError):  # no bytes, or they end too early
        return None
    return values.reshape(height, width, _CHANNELS)[:, :, 3] > 0


class _Bits:
    """Reads numbers from bytes, the highest bit first."""

    def __init__(self, data: NDArray[np.uint8]) -> None:
        self.bits, self.position = np.unpackbits(data), 0

    def number(self, size: int) -> int:
        return int(self.numbers(1, size)[0])

    def numbers(self, count: int, size: int) -> NDArray[np.int64]:
        """Return ``count`` numbers of ``size`` bits.

        Raises:
            ValueError: There are fewer.
        """
        part = self.bits[self.position : self.position + count * size].reshape(count, size)
        self.position += count * size
        powers: NDArray[np.int64] = 1 << np.arange(size - 1, -1, -1)
        return part @ powers


def cut_out(pixels: NDArray[np.bool_]) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """Return a copy of the part of a mask that its pixels span, and the part's first row and column."""
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    part = pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return part.copy(), (int(rows[0]), int(columns[0]))


def in_image(
    pixels: NDArray[np.bool_], corner: Sequence[int], size: tuple[int, int]
) -> tuple[NDArray[np.bool_], tuple[int, int]]:
    """Return the part of a mask that lies in an image, and its first row and column there.

    Args:
        pixels: (h, w).
        corner: Row and column of its first pixel in the image, which may be negative.
        size: Height and width of the image.
    """
    (top, left), (height, width) = corner, size
    part = pixels[max(0, -top) : max(0, height - top), max(0, -left) : max(0, width - left)]
    return part, (max(0, top), max(0, left))
