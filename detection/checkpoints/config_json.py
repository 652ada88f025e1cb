"""The ``config.json`` of a detector folder: composed, read and checked as data that may come from anyone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from torch import nn

from vovnet.checkpoints.timm_folder import FORBIDDEN_ARGS
from vovnet.detection.config.categories import Category, keypoint_count, keypoint_problem, plain_category
from vovnet.detection.config.conventions import CONVENTIONS
from vovnet.detection.config.detectors import DETECTORS
from vovnet.detection.config.loading import check_plain
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.config.parts import recipe_part, shown, validate
from vovnet.detection.config.validation import check_model
from vovnet.errors import InputError
from vovnet.files import read_json
from vovnet.results.limits import MEDIAN_IMAGE, MEDIAN_OBJECT, TRAINED_CROP

FORMAT = "vovnet-detector"
FORMAT_VERSION = 1

_MAX_SIDE = 1_000_000
_FORBIDDEN = FORBIDDEN_ARGS | {"num_classes"}  # a detector's network has no classifier


@recipe_part("")
class DetectorConfig:
    """The content of ``config.json``."""

    model: ModelRecipe
    """The model recipe with ``num_classes``, ``image_mean`` and ``image_std`` filled in. ``pretrained`` tells how the
    training started, because frozen norms follow from it; nothing is downloaded for it."""
    categories: Annotated[list[Category], Field(max_length=20_000)]
    """Categories in label order: label k of the detector is ``categories[k - 1]``, label 0 is background."""
    preprocessing: dict[str, Any]
    """How an image becomes the detector's input, for readers in other languages; the model part says the same. The
    optional ``median_object`` is the median side in pixels of the training data's objects, and the optional
    ``median_image`` the median [height, width] of its images, or of crops of them with the side ``trained_crop``."""

    def to_json(self) -> dict[str, Any]:
        """Return plain data in the documented form."""
        return {"format": FORMAT, "format_version": FORMAT_VERSION, **dataclasses.asdict(self)}


def compose_config(
    detector: nn.Module,
    model: ModelRecipe,
    categories: Sequence[Mapping[str, Any]],
    median_object: float | None = None,
    median_image: Sequence[float] | None = None,
    crop: int | None = None,
) -> DetectorConfig:
    """Return the configuration of a detector in memory.

    Args:
        detector: a torchvision detector (its ``transform`` gives the normalisation).
        model: the recipe that it was built from.
        categories: the data's categories in label order; ``id``, ``name`` and those of keypoints are kept.
        median_object: the median side in pixels of the training data's objects; None takes that of a detector which was
            loaded, if it has one.
        median_image: the same of the median height and width in pixels of its images.
        crop: the same of the side in pixels of the crops that it was trained on.

    Raises:
        InputError: ``model.num_classes`` is set and is not the number of categories, or a value is out of the bounds
            that :func:`read_config` checks.
    """
    transform: Any = detector.transform
    kept = [plain_category(category) for category in categories]
    stored = dataclasses.replace(
        model,
        num_classes=len(kept) if model.num_classes is None else model.num_classes,
        image_mean=[float(value) for value in transform.image_mean],
        image_std=[float(value) for value in transform.image_std],
        # The source of the backbone's first weights is not part of the detector, which has its own.
        backbone_args={key: value for key, value in model.backbone_args.items() if key not in _FORBIDDEN},
        pretrained=model.pretrained or "checkpoint_path" in model.backbone_args,
    )
    preprocessing = _preprocessing(stored)
    loaded: Any = getattr(detector, "preprocessing", None) or {}
    known = loaded.get(MEDIAN_OBJECT) if median_object is None else median_object
    if known is not None:
        preprocessing[MEDIAN_OBJECT] = float(known)
    sides = loaded.get(MEDIAN_IMAGE) if median_image is None else median_image
    if sides is not None:
        preprocessing[MEDIAN_IMAGE] = [float(side) for side in sides]
    side = loaded.get(TRAINED_CROP) if crop is None else crop
    if side is not None:
        preprocessing[TRAINED_CROP] = int(side)
    config = DetectorConfig(stored, kept, preprocessing)
    _check(config)
    return config


def _preprocessing(model: ModelRecipe) -> dict[str, Any]:
    facts = CONVENTIONS[model.conventions]
    return {
        "in_chans": model.in_chans,
        "channel_order": {1: "grey", 3: facts.channel_order}.get(model.in_chans, "as trained"),
        "range": list(facts.value_range),
        "mean": model.image_mean,
        "std": model.image_std,
        "min_size": model.min_size,
        "max_size": model.max_size,
    }


def read_config(path: Path) -> DetectorConfig:
    """Read and check a ``config.json``.

    Raises:
        InputError: unreadable, not JSON, another format or version, an unknown or missing key, a wrong type, a value
            out of bounds, categories that do not fit, or a preprocessing part that contradicts the model part.
    """
    values = read_json(path)
    if (found := values.pop("format", None)) != FORMAT:
        raise InputError(f"{path}: 'format' is {shown(found)}, expected '{FORMAT}'; this is no detector folder")
    version = values.pop("format_version", None)
    if type(version) is not int or version != FORMAT_VERSION:
        raise InputError(
            f"{path}: 'format_version' is {shown(version)}, this vovnet reads {FORMAT_VERSION}; a newer vovnet may "
            "read it"
        )
    check_plain({**values, "categories": None}, str(path))  # names may be any text
    config = validate(DetectorConfig, values, str(path))
    try:
        _check(config)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return config


def _check(config: DetectorConfig) -> None:
    """Check what the types and bounds of the fields cannot say."""
    model = config.model
    check_model(model)
    if any(character in model.backbone for character in ":/\\"):
        raise InputError(f"model.backbone: expected the plain name of a timm model, got {shown(model.backbone)}")
    if forbidden := sorted(_FORBIDDEN & set(model.backbone_args)):
        raise InputError(f"model.backbone_args.{forbidden[0]} is not allowed in a stored detector")
    for name in ("image_mean", "image_std"):
        if getattr(model, name) is None:
            raise InputError(f"model.{name}: expected model.in_chans = {model.in_chans} numbers, got null")
    ids = {category["id"] for category in config.categories}
    if len(config.categories) != model.num_classes:
        raise InputError(f"categories: expected model.num_classes = {model.num_classes}, got {len(config.categories)}")
    if len(ids) != len(config.categories):
        raise InputError("categories: expected different ids, but an id stands there twice")
    for position, category in enumerate(config.categories):
        if (problem := keypoint_problem(category)) is not None:
            raise InputError(f"categories[{position}].{problem}")
    if DETECTORS[model.detector].needs_keypoints:
        points = keypoint_count(config.categories, "categories")
        if points not in (None, model.num_keypoints):
            raise InputError(f"model.num_keypoints: expected {points}, as categories name, got {model.num_keypoints}")
    expected, found = _preprocessing(model), dict(config.preprocessing)
    median = found.pop(MEDIAN_OBJECT, 1.0)
    if not _is_number(median) or not 0 <= median <= _MAX_SIDE:
        raise InputError(f"preprocessing.{MEDIAN_OBJECT}: expected a number of pixels, got {shown(median)}")
    sides = found.pop(MEDIAN_IMAGE, [1.0, 1.0])
    numbers = [one for one in sides if _is_number(one) and 1 <= one <= _MAX_SIDE] if isinstance(sides, list) else []
    if len(numbers) != 2 or numbers != sides:
        raise InputError(f"preprocessing.{MEDIAN_IMAGE}: expected [height, width] in pixels, got {shown(sides)}")
    side = found.pop(TRAINED_CROP, 1)
    if isinstance(side, bool) or not isinstance(side, int) or not 1 <= side <= _MAX_SIDE:
        raise InputError(f"preprocessing.{TRAINED_CROP}: expected a whole number of pixels, got {shown(side)}")
    for key in [*expected, *found]:
        if key not in expected:
            raise InputError(f"unknown key {shown(key)} in preprocessing; expected one of {', '.join(expected)}")
        if key not in found:
            raise InputError(f"missing key 'preprocessing.{key}'")
        if found[key] != expected[key]:
            raise InputError(
                f"preprocessing.{key}: expected {shown(expected[key])} as in the model part, got {shown(found[key])}"
            )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
