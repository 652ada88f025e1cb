"""Detectors by name: from a folder on this machine or from the Hugging Face Hub."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["load_detector"]


def load_detector(name_or_folder: str | os.PathLike[str], revision: str | None = None) -> nn.Module:
    """Load a detector from a folder or from the Hub, ready to predict.

    Args:
        name_or_folder: a local folder with ``config.json`` and ``model.safetensors`` (such as a training run's), else
            ``ORG/NAME`` on the Hugging Face Hub; only the latter reaches the network.
        revision: branch, tag or commit on the Hub.

    Returns:
        A torchvision detector in eval mode with ``categories``, ``preprocessing`` and ``recipe``; it takes a list of
        float tensors (C, H, W) in [0, 1] and returns boxes as XYXY pixels.

    Raises:
        InputError: not found, offline, damaged, or of a format that this version does not read.
    """
    from vovnet.detection import checkpoint

    return checkpoint.load_detector(name_or_folder, revision)
