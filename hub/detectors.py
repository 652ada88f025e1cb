"""Detectors in published files: recognised by keys and shapes, and written as detector folders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from vovnet.checkpoints.shapes import Shapes
from vovnet.detection.checkpoints.empty import fill_detector
from vovnet.detection.checkpoints.folder import save_detector
from vovnet.detection.checkpoints.torchvision_detectors import TorchvisionDetector
from vovnet.detection.checkpoints.torchvision_file import TorchvisionFile, infer_torchvision, is_torchvision_file
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.legacy.keys import PARTS, PublishedDetector, infer_detector
from vovnet.detection.zoo.published import COCO_CLASSES, coco_categories
from vovnet.errors import InputError

Expected = ModelRecipe | TorchvisionDetector | str
"""What ``--expect`` names: the model of a recipe, one of torchvision's detectors, or timm's name of a network."""


def holds_detector(keys: Sequence[str]) -> bool:
    """Return True if a file's keys are those of a whole detector."""
    return any(key.startswith(PARTS) for key in keys) or is_torchvision_file(keys)


def recognised(shapes: Shapes, sha256: str, expected: Expected | None = None) -> PublishedDetector | TorchvisionFile:
    """Tell which detector a file holds, by its checksum, keys and shapes.

    Args:
        shapes: The names and shapes of the file's tensors, without ``module.``.
        sha256: The file's SHA-256.
        expected: What ``--expect`` names; it tells files of torchvision apart that have the same names and shapes.

    Raises:
        InputError: The file fits no detector; the message says what was found and what is expected.
    """
    if is_torchvision_file(shapes):
        return infer_torchvision(shapes, sha256, expected if isinstance(expected, TorchvisionDetector) else None)
    try:
        return infer_detector(shapes)
    except InputError as error:
        raise InputError(f"{error}; give --part backbone to take its network alone") from error


def licence_of(published: PublishedDetector | TorchvisionFile) -> str:
    """Return a key of :data:`vovnet.checkpoints.sources.LICENCE_NOTICES`."""
    return published.licence if isinstance(published, TorchvisionFile) else "unknown"


def is_expected(published: PublishedDetector | TorchvisionFile, expected: Expected) -> bool:
    """Return True if a file holds the detector that ``--expect`` names."""
    if isinstance(published, TorchvisionFile):
        return isinstance(expected, TorchvisionDetector) and published.fits(expected)
    return isinstance(expected, ModelRecipe) and published.has_structure_of(expected)


def write_detector(
    folder: Path, published: PublishedDetector | TorchvisionFile, tensors: Mapping[str, Tensor]
) -> list[str]:
    """Write a detector folder, and return notes for the user."""
    detector = fill_detector(published.detector, published.model, tensors)
    classes = published.model.num_classes or 0
    notes: list[str] = []
    categories: Sequence[Mapping[str, Any]] | None
    if isinstance(published, TorchvisionFile):
        categories, notes = published.categories, [*published.notes]
    else:
        categories = coco_categories() if classes == COCO_CLASSES else None
    if categories is None:
        categories = [{"id": number, "name": str(number)} for number in range(1, classes + 1)]
        notes.append(f"the file does not name its {classes} classes: config.json calls them 1 to {classes}")
    save_detector(folder, detector, published.model, categories)
    return notes
