"""Images for tests of preprocessing, and their pixels as exported files take them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def random_image(height: int, width: int, channels: int = 3) -> Image.Image:
    """Return colours that flow into each other, always the same for a size."""
    values = np.random.default_rng(height * width).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    image = Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)
    return image.convert("L") if channels == 1 else image


def as_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Return (C, H, W)."""
    values = np.array(image)
    return values[None] if values.ndim == 2 else np.ascontiguousarray(values.transpose(2, 0, 1))
