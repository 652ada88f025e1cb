"""Images as tensors of PyTorch."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def to_tensor(image: Image.Image) -> Tensor:
    """Return the pixels as uint8 (C, H, W) in 0..255, C = 3 for ``RGB`` and 1 for ``L``, in channels-last memory."""
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
