"""Images of any number of channels: ``.npy`` files of NumPy, and TIFF files with more channels than Pillow reads.

They are uint8, uint16, bool, or floats in 0..1, of shape (H, W), (H, W, C) or (C, H, W).
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from vovnet.errors import absent_package, install_advice, reason
from vovnet.images.faults import ImageSizeError, TooManyPixels, UnreadableImage

ARRAY_SUFFIX = ".npy"
TIFF_SUFFIXES = (".tif", ".tiff")

Pixels = npt.NDArray[Any]
"""(C, H, W), uint8 in 0..255 or float32 in 0..1."""

_MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 2**62)
_MOST_CHANNELS = 1024


def is_array_file(source: object) -> bool:
    """Return True for the path of a ``.npy`` file."""
    return isinstance(source, str | os.PathLike) and os.fsdecode(source).lower().endswith(ARRAY_SUFFIX)


def is_tiff_file(source: object) -> bool:
    """Return True for the path of a TIFF file, by its name."""
    return isinstance(source, str | os.PathLike) and os.fsdecode(source).lower().endswith(TIFF_SUFFIXES)


def array_shape(source: str | os.PathLike[str]) -> tuple[int, int, int]:
    """Return channels, height and width of a file from its header. The shortest of the first and last axis is C.

    Raises:
        UnreadableImage: It cannot be read, or has another number of axes.
    """
    shape = _open(source)[0]
    if len(shape) == 2:
        return 1, *shape
    first = shape[0] < shape[2]
    return (shape[0], shape[1], shape[2]) if first else (shape[2], shape[0], shape[1])


def read_array(
    source: str | os.PathLike[str],
    channels: int | None,
    size: tuple[int, int] | None = None,
    *,
    max_pixels: int | None = None,
) -> Pixels:
    """Return the pixels of a ``.npy`` or TIFF file, (C, H, W).

    uint8 stays as it is, and bool becomes 0 and 255. uint16 becomes float32 in 0..1, with all of its bits.

    Args:
        source: The path.
        channels: The number of channels; the axis that has as many is C. None takes what :func:`array_shape` says.
        size: (width, height) as in an annotation file.
        max_pixels: The limit of width × height. None is Pillow's for other images.

    Raises:
        UnreadableImage: The file cannot be read, or its shape, type or range is another.
        TooManyPixels: It has more pixels than ``max_pixels``.
        ImageSizeError: The image has another size.
    """
    name = os.fsdecode(source)
    shape, load = _open(source)
    wanted = channels or array_shape(source)[0]
    order: tuple[int, ...]
    if len(shape) == 3 and shape[2] == wanted:
        order = (2, 0, 1)
    elif len(shape) == 3 and shape[0] == wanted:
        order = (0, 1, 2)
    elif len(shape) == 2 and wanted == 1:
        order = (0, 1)
    else:
        raise UnreadableImage(
            f"{name}: expected {wanted} channels (model.in_chans), (H, W, C) or (C, H, W); got {shape}"
        )
    height, width = [length for axis, length in enumerate(shape) if len(shape) == 2 or axis != order[0]]
    limit = _MOST_PIXELS if max_pixels is None else max_pixels
    if height * width > limit:
        raise TooManyPixels(
            f"{name}: {height * width} pixels are more than the limit of {limit}; if you trust this file, allow them "
            f"with --max-pixels {height * width} (in a recipe, data.max_pixels)"
        )
    if size is not None and (width, height) != tuple(size):
        raise ImageSizeError(
            f"{name}: the image is {width}x{height} but its annotations say {size[0]}x{size[1]} (width x height); "
            "correct width and height, or the image"
        )
    try:
        values = np.array(load())
    except Exception as error:  # NumPy and tifffile raise what they like for damaged files
        raise UnreadableImage(f"{name}: cannot be read ({reason(error)}){_unpacking(name)}") from error
    return _in_range(values.transpose(order) if len(order) == 3 else values[None], name)


def _open(source: str | os.PathLike[str]) -> tuple[tuple[int, ...], Any]:
    """Return the shape of a file and a function that loads it."""
    name = os.fsdecode(source)
    if not os.path.isfile(name):
        raise UnreadableImage(f"{name}: no such image" if not os.path.exists(name) else f"{name}: is not a file")
    try:
        shape, load = _open_npy(name) if is_array_file(name) else _open_tiff(name)
    except UnreadableImage:
        raise
    except Exception as error:  # as above
        raise UnreadableImage(f"{name}: cannot be read ({reason(error)})") from error
    if len(shape) not in (2, 3) or min(shape) < 1 or (len(shape) == 3 and min(shape[0], shape[2]) > _MOST_CHANNELS):
        raise UnreadableImage(f"{name}: expected an array (H, W), (H, W, C) or (C, H, W), got shape {tuple(shape)}")
    return tuple(int(length) for length in shape), load


def _open_npy(name: str) -> tuple[tuple[int, ...], Any]:
    # Pickled objects, which could run code, are refused.
    array = np.load(name, mmap_mode="r", allow_pickle=False)
    return array.shape, lambda: array


def _open_tiff(name: str) -> tuple[tuple[int, ...], Any]:
    if absent_package("tifffile") is not None:
        raise UnreadableImage(f"{name}: TIFF files of many channels are read with tifffile: {install_advice('tiff')}")
    import tifffile

    with tifffile.TiffFile(name) as file:
        shape = file.series[0].shape
    return shape, lambda: tifffile.imread(name, series=0)


def _unpacking(name: str) -> str:
    """Return what else may be wrong with a TIFF file: most of the compressed ones need a second package."""
    if is_array_file(name) or absent_package("imagecodecs") is None:
        return ""
    return f"; if it is compressed, it needs imagecodecs: {install_advice('tiff')}"


def _in_range(values: npt.NDArray[Any], name: str) -> Pixels:
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return (values.astype(np.float32) / np.float32(65535)).astype(np.float32)
    if values.dtype.kind != "f":
        raise UnreadableImage(f"{name}: expected uint8, uint16, bool or floats in 0..1, got {values.dtype}")
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise UnreadableImage(
            f"{name}: floats must be in 0..1, got {low:g}..{high:g}; divide them by the largest possible value"
        )
    return np.ascontiguousarray(values, dtype=np.float32)


def viewable(pixels: Pixels) -> Image.Image:
    """Return pixels (C, H, W) as an image that people can look at.

    One channel is grey; otherwise the first three are red, green and blue. Floats are stretched to the image's range:
    sensors of 12 bits leave most of 16 dark.
    """
    shown = pixels[:1] if pixels.shape[0] < 3 else pixels[:3]
    if shown.dtype != np.uint8:
        low, high = float(shown.min()), float(shown.max())
        shown = ((shown - low) * (255 / max(high - low, 1e-6))).round().astype(np.uint8)
    return Image.fromarray(shown[0] if shown.shape[0] == 1 else np.ascontiguousarray(shown.transpose(1, 2, 0)))


def eight_bits(pixels: Pixels) -> Image.Image:
    """Return pixels of 1 or 3 channels as Pillow's image of 8 bits; 16 bits lose their low byte, as in other files."""
    values = pixels if pixels.dtype == np.uint8 else (pixels * np.float32(65535 / 256)).astype(np.uint8)
    return Image.fromarray(values[0] if values.shape[0] == 1 else np.ascontiguousarray(values.transpose(1, 2, 0)))
