"""Build the detector that a recipe describes."""

from __future__ import annotations

from typing import Any

from torchvision.models.detection import FasterRCNN

from vovnet.detection.config.schema import ModelRecipe, Recipe
from vovnet.detection.config.validation import check_model
from vovnet.detection.data.protocol import Category
from vovnet.detection.models.assembly import assemble, recipe_backbone


class Detector(FasterRCNN):
    """The type of a detector with weights and categories: torchvision's class with three more attributes.

    Only type checkers use this class. At run time a detector is an instance of torchvision's own ``FasterRCNN`` or
    ``MaskRCNN``, so that TorchScript and every tool for these classes work with it.
    """

    categories: list[Category]
    """The categories in the order of labels: label k means ``categories[k - 1]``."""
    preprocessing: dict[str, Any]
    """How the detector prepares an image, as in ``config.json``."""
    recipe: ModelRecipe
    """The recipe that the detector was built from."""


def build_detector(recipe: Recipe | ModelRecipe, *, download: bool = True) -> FasterRCNN:
    """Build the detector that a recipe describes.

    Args:
        recipe: a recipe or its ``model`` part. ``num_classes`` must be set; it does not count the background.
        download: False does not download pretrained weights of the backbone, for a caller that loads its own. Norms
            and stages are frozen in both cases.

    Returns:
        A ``FasterRCNN`` or ``MaskRCNN``. It takes a list of float images (in_chans, H, W) in 0..1 of any sizes. In
        evaluation it resizes them to ``min_size`` and ``max_size``. In training it does not resize them.

    Raises:
        InputError: a value cannot be used; the message begins with its key, ``model.…``.
    """
    model = recipe.model if isinstance(recipe, Recipe) else recipe
    check_model(model)
    if model.conventions == "legacy":
        from vovnet.detection.legacy.detectors import build_legacy_detector

        return build_legacy_detector(model, download)
    return assemble(model, recipe_backbone(model, download))
