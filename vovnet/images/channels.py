"""Images of any number of channels."""

from __future__ import annotations

import os
from contextlib import suppress

from PIL import Image

from vovnet.errors import absent_package
from vovnet.images.arrays import Pixels, array_shape, is_array_file, is_tiff_file, read_array
from vovnet.images.faults import UnreadableImage
from vovnet.images.reading import ImageSource, pillow_size, read_image, source_name


def read_pixels(
    source: ImageSource, channels: int, size: tuple[int, int] | None = None, *, max_pixels: int | None = None
) -> Image.Image | Pixels:
    """Return an image of any number of channels.

    Arguments and errors are those of :func:`read_image`.

    Returns:
        For 1 and 3 channels what :func:`read_image` returns; for others an array (C, H, W) of a ``.npy`` or TIFF file,
        as :func:`vovnet.images.arrays.read_array` returns it.
    """
    if channels in (1, 3):
        return read_image(source, channels, size, max_pixels=max_pixels)
    if not isinstance(source, str | os.PathLike) or not (is_array_file(source) or is_tiff_file(source)):
        raise UnreadableImage(
            f"{source_name(source)}: expected a .npy or TIFF file with {channels} channels (model.in_chans)"
        )
    return read_array(os.fsdecode(source), channels, size, max_pixels=max_pixels)


def many_channels(path: str) -> int | None:
    """Return the number of channels of an image if it is neither grey nor colour, or None.

    Such are ``.npy`` files, and TIFF files that Pillow cannot read.
    """
    try:
        if is_array_file(path):
            channels = array_shape(path)[0]
            return None if channels in (1, 3) else channels
        if not is_tiff_file(path) or absent_package("tifffile") is not None:
            return None
        pillow_size(path)
    except UnreadableImage:
        with suppress(UnreadableImage):
            return array_shape(path)[0]
    return None
