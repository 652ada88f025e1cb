"""Find images below a folder that no file name can leave, and decode them with Pillow.

The whole package decodes images with :func:`read_image`, so that training, evaluation and prediction get the same
pixels from the same file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageMode, UnidentifiedImageError
from torch import Tensor

from vovnet.errors import InputError, is_text, reason, shown

SUFFIXES = frozenset(
    {".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
)
"""The suffixes of the files that :func:`list_images` returns, in lower case."""

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


class UnreadableImage(InputError):
    """An image is missing, truncated, not an image at all, or of a kind that is not supported."""


class ImageSizeError(InputError):
    """An image's width and height differ from those in its annotation file."""


class OutsideRoot(InputError):
    """A ``file_name`` leads out of the folder of images."""


def read_image(source: str | Path | IO[bytes], channels: int = 3, size: tuple[int, int] | None = None) -> Image.Image:
    """Decode an image to 8 bits per channel.

    Grey, palette, CMYK and transparent images are converted (transparency is dropped, not blended); 16-bit values
    lose their low byte. An image is turned upright if its EXIF data has another orientation.

    Args:
        source: A path or an open binary file.
        channels: 3 returns mode ``RGB``, 1 returns mode ``L``.
        size: (width, height) in pixels as in an annotation file. The image is then turned upright only if that gives
            this size, because boxes refer to the pixels as they were annotated.

    Raises:
        UnreadableImage: The file cannot be opened or decoded.
        ImageSizeError: Neither the stored nor the upright image has ``size``.
    """
    if channels not in (1, 3):
        raise InputError(f"channels: images are read with 1 (grey) or 3 (RGB) channels, got {channels}")
    name = str(source) if isinstance(source, str | Path) else str(getattr(source, "name", "the open image"))
    try:
        with Image.open(source) as opened:
            opened.load()
            return _convert(_orient(opened, name, size), name, channels)
    except InputError:
        raise
    except OSError as error:
        raise UnreadableImage(f"{name}: {_reason(error)}") from error
    except Exception as error:  # Pillow's plugins raise almost anything on damaged files.
        raise UnreadableImage(f"{name}: cannot be decoded as an image ({reason(error)})") from error


def _reason(error: OSError) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "is not an image of a kind that Pillow reads"
    if isinstance(error, FileNotFoundError):
        return "no such image"
    if isinstance(error, IsADirectoryError):
        return "is a folder, not an image"
    if isinstance(error, PermissionError):
        return "no permission to read this image"
    return f"the image is truncated or damaged ({reason(error)})"


def _orient(image: Image.Image, name: str, size: tuple[int, int] | None) -> Image.Image:
    turn = _turn(image)
    width, height = image.size
    upright = (height, width) if turn in _SWAPS else (width, height)
    if size is None or upright == tuple(size):
        return image if turn is None else image.transpose(turn)
    if image.size != tuple(size):
        raise ImageSizeError(
            f"{name}: the image is {width}x{height} but its annotations say {size[0]}x{size[1]} (width x height); "
            "correct width and height, or the image"
        )
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
    elif image.mode in ("RGBa", "La"):
        image = image.convert(image.mode.upper())
    return image if image.mode == mode else image.convert(mode)


def to_tensor(image: Image.Image) -> Tensor:
    """Return the pixels as uint8 (C, H, W) in 0..255, C = 3 for ``RGB`` and 1 for ``L``, in channels-last memory."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)


def list_images(folder: str | Path) -> list[Path]:
    """Return the images in a folder, by suffix and sorted by name, without subfolders and hidden files."""
    try:
        with os.scandir(folder) as entries:
            names = [
                e.name for e in entries if not e.name.startswith(".") and PurePath(e.name).suffix.lower() in SUFFIXES
            ]
    except OSError as error:
        raise InputError(f"{folder}: cannot be listed as a folder of images ({error.strerror})") from error
    paths = [Path(folder, name) for name in sorted(names) if not Path(folder, name).is_dir()]
    if not paths:
        raise InputError(f"{folder}: no images in this folder (looked for {', '.join(sorted(SUFFIXES))})")
    return paths


def resolve_inside(root: str | Path, file_name: str) -> Path:
    """Return the path of ``file_name`` below ``root``. The file need not exist.

    Raises:
        OutsideRoot: ``file_name`` is absolute, contains ``..``, or leads out through a symbolic link.
    """
    base = os.path.realpath(root)
    inside = _inside(file_name)
    path = Path(base, inside)
    if not Path(os.path.realpath(path)).is_relative_to(base):
        raise OutsideRoot(f"{file_name!r}: leads out of the folder of images {root} through a symbolic link")
    return path


def _inside(file_name: str) -> str:
    if not is_text(file_name) or "\0" in file_name or os.path.isabs(file_name) or PurePath(file_name).drive:
        raise OutsideRoot(f"{file_name!r}: file_name must be relative to the folder of images")
    inside = os.path.normpath(file_name)
    # The name "a/../b" stays inside, but "a" may be a link that leads out. Therefore ".." is never accepted.
    if ".." in PurePath(file_name).parts:
        raise OutsideRoot(f"{file_name!r}: file_name must not contain '..'")
    return inside


class ImageFolder:
    """Find many files below a folder quickly: each subfolder is listed once, and only links are resolved."""

    def __init__(self, root: str | Path) -> None:
        if not os.path.isdir(root):
            what = "is not a folder" if os.path.exists(root) else "no such folder"
            raise InputError(f"{root}: {what} (expected the folder that the annotations' file_name entries are in)")
        self.root = root
        self._base = os.path.realpath(root)
        self._listed: dict[str, dict[str, bool]] = {}

    def find(self, file_name: str) -> str | None:
        """Return the path of a file, or None if it is missing.

        Raises:
            OutsideRoot: see :func:`resolve_inside`.
        """
        folder, name = os.path.split(_inside(file_name))
        if folder not in self._listed:
            self._listed[folder] = self._list(folder)
        plain = self._listed[folder].get(name)
        if plain is None:
            return None
        path = os.path.join(self._base, folder, name)
        if not plain:
            resolve_inside(self._base, file_name)
            if not _is_file(path):
                return None
        return path

    def _list(self, folder: str) -> dict[str, bool]:
        """Return the names in a folder, and for each whether it is a plain file and not a link."""
        path = resolve_inside(self._base, folder or ".")
        try:
            with os.scandir(path) as entries:
                return {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
        except OSError:  # A folder that is missing or forbidden has no files.
            return {}


def _is_file(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)
    except OSError:
        return False


def upright_size(path: str | Path) -> tuple[int, int]:
    """Return the (width, height) in pixels of the image that :func:`read_image` returns, from the header alone."""
    try:
        with Image.open(path) as image:
            return image.size if _turn(image) not in _SWAPS else (image.height, image.width)
    except Exception as error:
        raise UnreadableImage(f"{path}: cannot be read as an image ({reason(error)})") from error


def example_names(names: Iterable[object], total: int, limit: int = 3) -> str:
    """Return ``a, b, c and 7 more`` for messages."""
    first = [shown(name) for _, name in zip(range(limit), names, strict=False)]
    more = f" and {total - len(first)} more" if total > len(first) else ""
    return ", ".join(first) + more
