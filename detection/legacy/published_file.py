"""Read a file of a published detector."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from vovnet.checkpoints.pickled import read_checkpoint_file, to_float32
from vovnet.checkpoints.shapes import shapes_of
from vovnet.detection.legacy.keys import check_cell_anchors, infer_detector
from vovnet.detection.zoo.published import published_model
from vovnet.errors import InputError


def read_published(recipe: str, path: Path) -> dict[str, Tensor]:
    """Read a published file as the state dict of the detector that a recipe describes.

    Args:
        recipe: name of a recipe in :data:`vovnet.detection.zoo.published.PUBLISHED_ROWS`.
        path: the ``.pth`` file.

    Returns:
        Every tensor under the detector's own name, in float32.

    Raises:
        InputError: the file cannot be read safely, or has another detector, other classes or other anchors.
    """
    wanted = published_model(recipe)
    tensors = read_checkpoint_file(path).tensors
    try:
        found = infer_detector(shapes_of(tensors))
        if not found.has_structure_of(wanted) or found.model.num_classes != wanted.num_classes:
            raise InputError(f"{found.is_not(recipe)} with {wanted.num_classes} classes")
        check_cell_anchors(tensors)
        values, _ = to_float32({theirs: tensors[theirs] for theirs in found.names})
    except InputError as error:
        raise InputError(f"{path}: {error}; remove the file to fetch it again") from error
    return {found.names[theirs]: value for theirs, value in values.items()}
