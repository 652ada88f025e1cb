"""Images as tensors of PyTorch."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vovnet.images.arrays import Pixels


def to_tensor(image: Image.Image | Pixels) -> Tensor:
    """Return the pixels of what :func:`vovnet.images.channels.read_pixels` returns, as a tensor (C, H, W).

    uint8 in 0..255, C = 3 for ``RGB`` and 1 for ``L``, in channels-last memory; or as an array (C, H, W) has them.
    """
    if isinstance(image, np.ndarray):
        return torch.from_numpy(image)
    pixels = torch.from_numpy(np.array(image))
    return pixels[None] if pixels.ndim == 2 else pixels.permute(2, 0, 1)
