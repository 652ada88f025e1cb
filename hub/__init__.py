"""Detectors by name, from a folder or from the Hugging Face Hub, and published checkpoints turned into folders."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

    from vovnet.hub.convert import Conversion
    from vovnet.hub.publishing import Publication
    from vovnet.hub.verification import Verification

__all__ = ["convert_checkpoint", "load_detector", "publish", "verify"]


def convert_checkpoint(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    expect: str | None = None,
    architecture: str = "timm",
) -> Conversion:
    """Read a published checkpoint and write a folder that loads here.

    What it holds is told by its keys and shapes alone: a Faster or Mask R-CNN of maskrcnn-benchmark becomes a detector
    folder (:func:`load_detector`); a classifier of VoVNet.pytorch, a detection backbone, a ResNet in
    maskrcnn-benchmark's names or a VoVNetV2 of vovnet-detectron2 a timm folder
    (``timm.create_model("local-dir:OUT", pretrained=True)`` after ``import vovnet``). The file is a state dict, or
    ``{"model": …}`` with an optimizer and the like beside it, with ``module.`` before all keys or none.

    Beside ``config.json`` and ``model.safetensors`` stand a model card, ``manifest.json`` (the file's SHA-256, and
    outputs for :func:`verify`) and ``SHA256SUMS``.

    Args:
        path: the ``.pth`` file. Only tensors and plain values are read, so nothing in it can run.
        out: the folder for the result; created if need be.
        overwrite: replace what stands in a folder that is not empty.
        expect: a recipe's or timm model's name that the file has to be of.
        architecture: how ``config.json`` calls a VoVNet: ``timm`` (as timm's ``vovnet39a`` with arguments, which loads
            without this package, too) or ``vovnet`` (by its name here). The outputs are equal.

    Returns:
        What the file was, what to know about it, and the keys that were left out on purpose; ``str()`` tells it all.

    Raises:
        InputError: the file cannot be read, would run code, holds keys or shapes that do not fit (all are listed),
            values that are not finite, anchors other than the published ones, or something else than ``expect``; or
            ``out`` cannot be written to. Nothing is written then.
    """
    from vovnet.hub import convert

    return convert.convert_checkpoint(path, out, overwrite=overwrite, expect=expect, architecture=architecture)


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
    from vovnet.detection.checkpoints import folder

    return folder.load_detector(name_or_folder, revision)


def publish(
    folder: str | os.PathLike[str],
    repository: str,
    *,
    yes: bool = False,
    private: bool = True,
    license: str | None = None,
    dataset: str | None = None,
    architecture: str = "timm",
) -> Publication:
    """Upload a folder's model to the Hugging Face Hub, with a model card, checksums and recorded outputs.

    Exactly ``README.md``, ``config.json``, ``model.safetensors``, ``manifest.json`` and ``SHA256SUMS`` go there, in one
    commit; whatever else the folder holds stays.

    Args:
        folder: of a training run, of :func:`convert_checkpoint`, or in timm's form.
        repository: ``ORG/NAME``; created if need be.
        yes: False uploads nothing and needs no network: the result says what would go.
        private: whether a new repository is private; one that exists stays as it is.
        license: an identifier of the Hub's, such as ``apache-2.0``; ``other`` for weights whose authors state none.
            Needed for converted weights.
        dataset: what the card calls the data that the model was trained and evaluated on.
        architecture: as in :func:`convert_checkpoint`.

    Returns:
        Files, sizes, what to know, and the commit; ``str()`` tells it all.

    Raises:
        InputError: the folder cannot be loaded or was changed since its conversion, its configuration holds a local
            path, a licence is missing or contradicts the source's, or the Hub refuses.
    """
    from pathlib import Path

    from vovnet.hub.publishing import publish_folder
    from vovnet.hub.release import Description

    description = Description(repository, license, dataset, architecture)
    return publish_folder(Path(folder), description, yes=yes, private=private)


def verify(name_or_folder: str | os.PathLike[str], revision: str | None = None) -> Verification:
    """Check that a published folder is whole and computes here what it did where it was published.

    The files are held to ``SHA256SUMS``, loaded, and run on an image that is made by rule; the outputs are held to
    those in ``manifest.json``.

    Args:
        name_or_folder: a local folder, else ``ORG/NAME`` on the Hub.
        revision: branch, tag or commit on the Hub.

    Raises:
        InputError: anything is missing, damaged or different; all of it is named.
    """
    from vovnet.hub.verification import verify_folder

    return verify_folder(name_or_folder, revision)
