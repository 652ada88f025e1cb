"""Detectors by name, from a folder or from the Hugging Face Hub, and published checkpoints turned into folders."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from vovnet.hub.convert import Conversion

__all__ = ["convert_checkpoint", "load_detector"]


def convert_checkpoint(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    expect: str | None = None,
) -> Conversion:
    """Read a published checkpoint and write a folder that loads here.

    What it holds is told by its keys and shapes alone: a Faster or Mask R-CNN of maskrcnn-benchmark becomes a detector
    folder (:func:`load_detector`); a classifier of VoVNet.pytorch, a detection backbone, a ResNet in
    maskrcnn-benchmark's names or a VoVNetV2 of vovnet-detectron2 a timm folder
    (``timm.create_model("local-dir:OUT", pretrained=True)`` after ``import vovnet``). The file is a state dict, or
    ``{"model": …}`` with an optimizer and the like beside it, with ``module.`` before all keys or none.

    Args:
        path: the ``.pth`` file. Only tensors and plain values are read, so nothing in it can run.
        out: the folder for ``config.json`` and ``model.safetensors``; created if need be.
        overwrite: replace what stands in a folder that is not empty.
        expect: a recipe's or timm model's name that the file has to be of.

    Returns:
        What the file was, what to know about it, and the keys that were left out on purpose; ``str()`` tells it all.

    Raises:
        InputError: the file cannot be read, would run code, holds keys or shapes that do not fit (all are listed),
            values that are not finite, anchors other than the published ones, or something else than ``expect``; or
            ``out`` cannot be written to. Nothing is written then.
    """
    from vovnet.hub import convert

    return convert.convert_checkpoint(path, out, overwrite=overwrite, expect=expect)


def load_detector(name_or_folder: str | os.PathLike[str], revision: str | None = None) -> nn.Module:
    """Load a detector from a folder or from the Hub, ready to predict.

    Args:
        name_or_folder: a local folder with ``config.json`` and ``model.safetensors`` (such as a training run's), else
            ``ORG/NAME`` on the Hugging Face Hub; only the latter reaches the network.
        revision: branch, tag or commit on the Hub.

    Returns:
        A torchvision detector in eval mode with ``categories``, ``preprocessing`` and ``recipe``; it takes a list of
        float tensors (C, H, W) in [0, 1] and returns boxes as XYXY pixels; those of a detector with ``conventions:
        legacy`` are inclusive, and its ``boxes_to_xywh`` makes COCO's of them.

    Raises:
        InputError: not found, offline, damaged, or of a format that this version does not read.
    """
    from vovnet.detection import checkpoint

    return checkpoint.load_detector(name_or_folder, revision)
