"""Decode images with Pillow.

The whole package decodes files with :func:`read_image`, so that training, evaluation and prediction get the same pixels
from the same file.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import IO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageMode, UnidentifiedImageError

from vovnet.errors import InputError, absent_package, reason, shown
from vovnet.images.arrays import ARRAY_SUFFIX, array_shape, eight_bits, is_array_file, is_tiff_file, read_array
from vovnet.images.faults import ImageSizeError as ImageSizeError
from vovnet.images.faults import TooManyPixels as TooManyPixels
from vovnet.images.faults import UnreadableImage as UnreadableImage

ImageSource = str | bytes | os.PathLike[str] | os.PathLike[bytes] | IO[bytes]
"""A path or an open binary file."""

_NOT_READ = {
    "EPS": "Pillow starts Ghostscript to decode it",
    "WMF": "Pillow lets the system draw it",
    "IPTC": "it may contain a file of any other kind",
    "FPX": "it may contain a file of any other kind",
    "MIC": "it may contain a file of any other kind",
    "BUFR": "Pillow has no decoder for it",
    "GRIB": "Pillow has no decoder for it",
    "HDF5": "Pillow has no decoder for it",
    "MPEG": "Pillow has no decoder for it",
}
"""Pillow's formats that are not read, and why: no other program and no interpreter is started for an image."""

_OPTIONAL = {"WEBP": b"RIFF____WEBPVP8 ", "AVIF": b"____ftypavif____"}
"""Formats whose libraries a Pillow may lack, and the first bytes of such a file."""

_ORIENTATION = 0x0112
# EXIF 2.32, table 6: what undoes each orientation; 1 (or anything else) is already upright.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS = frozenset(_UPRIGHT[orientation] for orientation in (5, 6, 7, 8))
_LIMIT = threading.Lock()
_NO_LIMIT = 2**62


def _formats() -> list[str]:
    """Return the formats that are read: Pillow's, and those of registered plug-ins."""
    Image.preinit()  # puts the common formats first
    Image.init()
    # Without its library, the plug-in of such a format would make Pillow warn about each file that it does not know.
    missing = {name for name, prefix in _OPTIONAL.items() if isinstance(_accepts(name, prefix), str)}
    return [name for name in Image.ID if name not in _NOT_READ and name not in missing]


def _accepts(name: str, prefix: bytes) -> bool | str:
    """Return what Pillow's plug-in says of the first bytes of a file: its own, or not, or why it cannot read it."""
    accept = Image.OPEN[name][1] if name in Image.OPEN else None
    return accept(prefix) if accept else False


def image_suffixes() -> frozenset[str]:
    """Return the suffixes of all formats that are read, in lower case with their dot."""
    formats = {*_formats(), "MPO"}  # an MPO file is opened as the JPEG file that it begins with
    known = (suffix for suffix, name in Image.registered_extensions().items() if name in formats)
    return frozenset((*known, ARRAY_SUFFIX))


def read_image(
    source: ImageSource, channels: int = 3, size: tuple[int, int] | None = None, *, max_pixels: int | None = None
) -> Image.Image:
    """Decode an image to 8 bits per channel; of an animation, the first image.

    Grey, palette, CMYK and transparent images are converted (transparency is dropped, not blended); 16-bit values
    lose their low byte. An image is turned upright if its EXIF data has another orientation.

    Args:
        source: A path or an open binary file.
        channels: 3 returns mode ``RGB``, 1 returns mode ``L``.
        size: (width, height) in pixels as in an annotation file. The image is then turned upright only if that gives
            this size, because boxes refer to the pixels as they were annotated.
        max_pixels: Refuse an image with more pixels. None is Pillow's limit, ``2 * PIL.Image.MAX_IMAGE_PIXELS``.

    Raises:
        UnreadableImage: The file cannot be opened or decoded.
        TooManyPixels: It has more pixels than ``max_pixels``.
        ImageSizeError: Neither the stored nor the upright image has ``size``.
    """
    if channels not in (1, 3):
        raise InputError(f"channels: images are read with 1 (grey) or 3 (RGB) channels, got {channels}")
    name = source_name(source)
    if is_array_file(source):
        stored = _stored_channels(os.fsdecode(name))
        return _convert(eight_bits(read_array(name, stored, size, max_pixels=max_pixels)), name, channels)
    with _one_line(name, source), _opened(source, max_pixels) as image:
        image.load()
        return _convert(_orient(image, name, size), name, channels)


def _stored_channels(name: str) -> int:
    """Return the number of channels of an array that can be shown as grey or colour.

    Raises:
        UnreadableImage: It has more.
    """
    stored = array_shape(name)[0]
    if stored not in (1, 3):
        raise UnreadableImage(f"{name}: expected 1 or 3 channels, got {stored}; a recipe sets model.in_chans={stored}")
    return stored


def convert_image(image: Image.Image, channels: int, name: str) -> Image.Image:
    """Return a Pillow image as :func:`read_image` returns its file; ``name`` begins the message of an error."""
    with _one_line(name):
        return _convert(_orient(image, name, None), name, channels)


def source_name(source: ImageSource) -> str:
    """Return the name of a file for messages."""
    if isinstance(source, str | bytes | os.PathLike):
        return os.fsdecode(source)
    return str(getattr(source, "name", "the open image"))


@contextmanager
def _opened(source: ImageSource, max_pixels: int | None) -> Iterator[Image.Image]:
    file: str | IO[bytes]
    if isinstance(source, str | bytes | os.PathLike):
        file = os.fsdecode(source)
        # Opening a named pipe would wait until something writes into it.
        if not stat.S_ISREG(os.stat(file).st_mode) and not os.path.isdir(file):
            raise UnreadableImage(f"{file}: is not a file (a pipe, a socket or a device)")
    else:
        file = source
    if max_pixels is None:
        with Image.open(file, formats=_formats()) as image:
            yield image
        return
    if max_pixels < 1:
        raise InputError(f"max_pixels: expected a number of pixels of at least 1, got {max_pixels}")
    # Pillow's limit is a global variable, and only read while a file is opened. Pillow warns of images above it.
    with _LIMIT, warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, max_pixels
        try:
            image = Image.open(file, formats=_formats())
        finally:
            Image.MAX_IMAGE_PIXELS = before
    with image:
        yield image


@contextmanager
def _one_line(name: str, source: ImageSource | None = None) -> Iterator[None]:
    """Turn the errors of Pillow into an ``UnreadableImage`` that names the image."""
    try:
        yield
    except InputError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        pixels, limit = [*re.findall(r"\d+", str(error)), "?", "?"][:2]
        raise TooManyPixels(
            f"{name}: {pixels} pixels are more than the limit of {limit}, which protects from files that fill the "
            f"memory; if you trust this file, allow them with --max-pixels {pixels} (in a recipe, data.max_pixels)"
        ) from error
    except OSError as error:
        raise UnreadableImage(f"{name}: {_reason(error, name, source)}") from error
    except Exception as error:  # Pillow's plugins raise almost anything on damaged files.
        raise UnreadableImage(f"{name}: cannot be decoded as an image ({reason(error)})") from error


def _reason(error: OSError, name: str, source: ImageSource | None) -> str:
    if isinstance(error, UnidentifiedImageError):
        return _unidentified(source)
    if isinstance(error, FileNotFoundError):
        return "is a link to a file that does not exist" if os.path.islink(name) else "no such image"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not an image"
    if isinstance(error, PermissionError):
        return "no permission to read this image"
    if error.errno == errno.ELOOP:
        return "is a link that leads to itself"
    if str(error).endswith("not available"):
        return f"this Pillow was built without what decodes the image ({reason(error)}); install Pillow's own wheel"
    return f"the image is truncated or damaged ({reason(error)})"


def _unidentified(source: ImageSource | None) -> str:
    """Return why no format that is read fits a file."""
    prefix = b""
    if isinstance(source, str | bytes | os.PathLike):
        with suppress(OSError), open(source, "rb") as file:
            prefix = file.read(16)
    elif source is not None:
        source.seek(0)  # Pillow has done so, too.
        prefix = source.read(16)
    for name in Image.ID:
        found = _accepts(name, prefix) if prefix else False
        if isinstance(found, str):
            return f"this Pillow was built without {name}, which the image needs; install Pillow's own wheel"
        if found and name in _NOT_READ:
            return f"is {name}, which is not read: {_NOT_READ[name]}; save it as PNG or JPEG"
    return "is not an image of a kind that Pillow reads"


def _orient(image: Image.Image, name: str, size: tuple[int, int] | None) -> Image.Image:
    turn = _turn(image)
    width, height = image.size
    upright = (height, width) if turn in _SWAPS else (width, height)
    if size is None or upright == tuple(size):
        return image if turn is None else _without_exif(image.transpose(turn))
    if image.size != tuple(size):
        raise ImageSizeError(
            f"{name}: the image is {width}x{height} but its annotations say {size[0]}x{size[1]} (width x height); "
            "correct width and height, or the image"
        )
    return _without_exif(image)


def _without_exif(image: Image.Image) -> Image.Image:
    """Remove what says how to turn the image, so that nobody who gets it turns it again."""
    for key in ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif"):
        image.info.pop(key, None)
    image.getexif().pop(_ORIENTATION, None)  # Pillow keeps what it has parsed
    return image


def _turn(image: Image.Image) -> Image.Transpose | None:
    try:
        return _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # Damaged EXIF data does not affect the pixels.
        return None


def _convert(image: Image.Image, name: str, channels: int) -> Image.Image:
    mode = "RGB" if channels == 3 else "L"
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        # Pillow's own conversion clips at 255. Older Pillows open 16-bit PNG and PGM files as 32-bit integers.
        image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).astype(np.uint8))
    elif ImageMode.getmode(image.mode).basetype in ("I", "F"):
        raise UnreadableImage(
            f"{name}: pixels of 32 bits (Pillow mode {image.mode}) have no known range; save it with 8 or 16"
        )
    elif image.mode == "P":
        image = image.convert("RGBA")  # avoids a warning about transparent palettes
    elif image.mode == "LAB":
        image = image.convert("RGB")  # Pillow has no way from LAB to grey
    elif image.mode in ("RGBa", "La"):
        image = image.convert(image.mode.upper())
    return image if image.mode == mode else image.convert(mode)


def upright_size(source: ImageSource) -> tuple[int, int]:
    """Return the (width, height) in pixels of the image that :func:`read_image` returns, from the header alone."""
    if is_array_file(source):
        return array_shape(source_name(source))[:0:-1]
    try:
        return pillow_size(source)
    except UnreadableImage:
        # A TIFF file of more channels than Pillow knows.
        if not is_tiff_file(source) or absent_package("tifffile") is not None:
            raise
        return array_shape(source_name(source))[:0:-1]


def pillow_size(source: ImageSource) -> tuple[int, int]:
    """Return what :func:`upright_size` does for a file that Pillow reads."""
    with _one_line(source_name(source), source), _opened(source, _NO_LIMIT) as image:
        return image.size if _turn(image) not in _SWAPS else (image.height, image.width)


def example_names(names: Iterable[object], total: int, limit: int = 3) -> str:
    """Return ``a, b, c and 7 more`` for messages."""
    first = [shown(name) for _, name in zip(range(limit), names, strict=False)]
    more = f" and {total - len(first)} more" if total > len(first) else ""
    return ", ".join(first) + more


def read_indices(source: ImageSource) -> NDArray[np.uint8]:
    """Return the stored values (H, W) of a palette or grey image: numbers of objects or classes, not colours.

    Raises:
        UnreadableImage: The file cannot be decoded, or has other values.
    """
    name = source_name(source)
    with _one_line(name, source), _opened(source, None) as image:
        if image.mode not in ("P", "L"):
            raise UnreadableImage(f"{name}: expected a palette or grey image of 8 bits, got mode {image.mode}")
        return np.array(image, dtype=np.uint8)
