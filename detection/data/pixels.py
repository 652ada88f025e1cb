"""Images of every kind as pixels of one form: what a path, a Pillow image, an array or a tensor stands for.

Training, evaluation and prediction convert with :func:`to_pixels`, so that the same image gives the same answer by each
of them.
"""

from __future__ import annotations

import os
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vovnet.errors import InputError
from vovnet.images.channels import read_pixels
from vovnet.images.reading import convert_image
from vovnet.images.tensors import to_tensor

ImageLike = (
    str | bytes | os.PathLike[str] | os.PathLike[bytes] | IO[bytes] | Image.Image | Tensor | np.ndarray[Any, Any]
)
"""A path; an open binary file; a Pillow image; an array (H, W, C) or (H, W); or a tensor (C, H, W) or (H, W)."""


def to_pixels(image: ImageLike, channels: int | None, name: str, *, max_pixels: int | None = None) -> Tensor:
    """Return an image as uint8 in 0..255 or float32 in [0, 1], (C, H, W).

    Arrays and tensors are uint8; uint16, which loses its low byte; bool, where True is white; or floats in [0, 1]. Grey
    and colour are converted to each other, and a second or fourth channel (alpha) is dropped, as in files.

    Args:
        image: The image.
        channels: The number of channels to return; None leaves arrays and tensors as they are.
        name: What messages call the image.
        max_pixels: The limit for files; see :func:`read_image`.

    Raises:
        InputError: The image cannot be read, or has another shape, type or range.
    """
    if isinstance(image, Image.Image):
        return to_tensor(convert_image(image, _file_channels(channels, name), name))
    if isinstance(image, np.ndarray):
        pixels = _array(image, name)
    elif isinstance(image, Tensor):
        pixels = _tensor(image, name)
    elif isinstance(image, str | bytes | os.PathLike) or hasattr(image, "read"):
        return to_tensor(read_pixels(image, channels or 3, max_pixels=max_pixels))
    else:
        raise InputError(f"{name}: expected a path, Pillow image, array or tensor, got {type(image).__name__}")
    if pixels.numel() == 0:
        raise InputError(f"{name}: the image has no pixels ({pixels.shape[2]}x{pixels.shape[1]})")
    pixels = _in_range(pixels, name)
    return pixels if channels is None else _with_channels(pixels, channels, name, tuple(image.shape))


def as_bytes(pixels: Tensor) -> Tensor:
    """Return pixels of :func:`to_pixels` as uint8 in 0..255."""
    return pixels if pixels.dtype == torch.uint8 else (pixels * 255).round().clamp(0, 255).to(torch.uint8)


def plain_tensor(value: Tensor) -> Tensor:
    """Return a tensor without a class of its own (such as ``tv_tensors``) and without gradients."""
    # Each operation on a subclass is slow, and so few are made.
    plain = value if type(value) is Tensor else value.as_subclass(Tensor)
    return plain.detach() if plain.requires_grad else plain


def _file_channels(channels: int | None, name: str) -> int:
    if channels not in (None, 1, 3):
        raise InputError(f"{name}: expected an array or a tensor with {channels} channels; files have 1 or 3")
    return channels or 3


def _array(image: np.ndarray[Any, Any], name: str) -> Tensor:
    if image.ndim not in (2, 3):
        raise InputError(f"{name}: expected an array (H, W, C) or (H, W), got shape {image.shape}")
    try:
        # A copy: tensors have no negative strides, no foreign byte order and no read-only memory.
        pixels = torch.from_numpy(np.array(image, dtype=image.dtype.newbyteorder("=")))
    except TypeError:
        raise InputError(f"{name}: expected uint8, uint16, bool or float in 0..1, got {image.dtype}") from None
    return pixels[None] if image.ndim == 2 else pixels.permute(2, 0, 1)


def _tensor(image: Tensor, name: str) -> Tensor:
    if image.ndim not in (2, 3):
        raise InputError(f"{name}: expected a tensor (C, H, W) or (H, W), got {tuple(image.shape)}")
    pixels = plain_tensor(image)
    if pixels.is_meta or pixels.layout != torch.strided:
        raise InputError(f"{name}: expected a tensor with pixels, got one on {pixels.device} in layout {pixels.layout}")
    return pixels[None] if image.ndim == 2 else pixels


def _in_range(pixels: Tensor, name: str) -> Tensor:
    if pixels.dtype == torch.uint8:
        return pixels
    if pixels.dtype == torch.uint16:
        return (pixels.to(torch.int32) >> 8).to(torch.uint8)
    if pixels.dtype == torch.bool:
        return pixels.to(torch.uint8) * 255
    if not pixels.is_floating_point():
        raise InputError(f"{name}: expected uint8, uint16, bool or float in 0..1, got {pixels.dtype}")
    pixels = pixels.to(torch.float32)
    low, high = (float(value) for value in pixels.aminmax())
    if not (low >= 0 and high <= 1):
        raise InputError(f"{name}: float images must be in 0..1, got {low:g}..{high:g}; divide by 255")
    return pixels


def _with_channels(pixels: Tensor, channels: int, name: str, shape: tuple[int, ...]) -> Tensor:
    if pixels.shape[0] == channels:
        return pixels
    if channels not in (1, 3) or not 1 <= pixels.shape[0] <= 4:
        raise InputError(f"{name}: expected {channels} channels, (C, H, W) or an array (H, W, C); got {shape}")
    if pixels.shape[0] in (2, 4):
        pixels = pixels[:-1]
    if pixels.shape[0] == channels:
        return pixels
    return pixels.expand(3, -1, -1) if channels == 3 else _grey(pixels)


def _grey(pixels: Tensor) -> Tensor:
    """Return the luminance (1, H, W) of RGB, by the formula of Pillow's conversion to ``L``."""
    red, green, blue = pixels.to(torch.int32) if pixels.dtype == torch.uint8 else pixels
    weighted = red * 19595 + green * 38470 + blue * 7471
    if weighted.is_floating_point():
        return (weighted / 65536)[None]
    return ((weighted + 0x8000) >> 16).to(torch.uint8)[None]
