"""The ``config.json`` of a detector folder: composed, read and checked as data that may come from anyone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vovnet.checkpoints.timm_folder import FORBIDDEN_ARGS
from vovnet.detection.config.loading import model_from_dict
from vovnet.detection.config.schema import CONVENTIONS, ModelRecipe
from vovnet.errors import InputError
from vovnet.files import read_json

FORMAT = "vovnet-detector"
FORMAT_VERSION = 1

_KEYS = {"format", "format_version", "model", "categories", "preprocessing"}
_PREPROCESSING_KEYS = {"in_chans", "channel_order", "range", "mean", "std", "min_size", "max_size"}

# What a stored number may be: wide enough for any real detector, narrow enough that building one from a hostile file
# cannot take the machine's memory or hours.
_LIMITS: dict[str, tuple[float, float]] = {
    "in_chans": (1, 1024),
    "fpn_channels": (1, 4096),
    "num_classes": (1, 20_000),
    "min_size": (1, 20_000),
    "max_size": (1, 20_000),
    "rpn_pre_nms_top_n_train": (1, 100_000),
    "rpn_pre_nms_top_n_test": (1, 100_000),
    "rpn_post_nms_top_n_train": (1, 100_000),
    "rpn_post_nms_top_n_test": (1, 100_000),
    "rpn_batch_size_per_image": (1, 10**9),  # bounds of a random choice, which cost nothing
    "rpn_head_convs": (1, 16),
    "box_head_convs": (0, 32),
    "box_head_channels": (1, 4096),
    "box_representation_size": (1, 16_384),
    "box_score_thresh": (0, 1),
    "box_nms_thresh": (0, 1),
    "box_detections_per_img": (1, 100_000),
    "box_batch_size_per_image": (1, 10**9),
    "mask_head_convs": (0, 32),
    "mask_head_channels": (1, 4096),
    "trainable_stages": (0, 64),
}
_MAX_LIST = 64
_FORBIDDEN = FORBIDDEN_ARGS | {"num_classes"}  # a detector's network has no classifier


@dataclass(frozen=True)
class DetectorConfig:
    """What ``config.json`` says."""

    model: ModelRecipe
    """With ``num_classes``, ``image_mean`` and ``image_std`` filled in. ``pretrained`` says how the training started:
    frozen norms follow from it, and nothing is downloaded for it."""
    categories: list[dict[str, Any]]
    """``{"id": int, "name": str}`` each; label k of the detector is ``categories[k - 1]``, label 0 is background."""
    preprocessing: dict[str, Any]
    """How an image becomes the detector's input, for readers in other languages; the model part says the same."""

    def to_json(self) -> dict[str, Any]:
        """Plain data in the documented form."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": dataclasses.asdict(self.model),
            "categories": self.categories,
            "preprocessing": self.preprocessing,
        }


def compose_config(detector: nn.Module, model: ModelRecipe, categories: Sequence[Mapping[str, Any]]) -> DetectorConfig:
    """Describe a detector that stands in memory.

    Args:
        detector: a torchvision detector (its ``transform`` gives the normalisation).
        model: the recipe that it was built from.
        categories: the data's categories in label order; keys other than ``id`` and ``name`` are left out.

    Raises:
        InputError: ``model.num_classes`` is set and is not the number of categories, or a number is out of the bounds
            that reading holds it to.
    """
    transform: Any = detector.transform
    mean, std = [float(value) for value in transform.image_mean], [float(value) for value in transform.image_std]
    kept = [{"id": int(category["id"]), "name": str(category["name"])} for category in categories]
    if model.num_classes is not None and model.num_classes != len(kept):
        raise InputError(f"categories: expected model.num_classes = {model.num_classes} of them, got {len(kept)}")
    # Where the backbone's first weights came from is not part of the detector, which has its own.
    arguments = {key: value for key, value in model.backbone_args.items() if key not in _FORBIDDEN}
    stored = dataclasses.replace(
        model,
        num_classes=len(kept),
        image_mean=mean,
        image_std=std,
        backbone_args=arguments,
        pretrained=model.pretrained or "checkpoint_path" in model.backbone_args,
    )
    _check_model(stored, "recipe")
    return DetectorConfig(stored, kept, _preprocessing(stored))


def _preprocessing(model: ModelRecipe) -> dict[str, Any]:
    conventions = CONVENTIONS[model.conventions]  # type: ignore[index]
    return {
        "in_chans": model.in_chans,
        "channel_order": {1: "grey", 3: conventions.channel_order}.get(model.in_chans, "as trained"),
        "range": list(conventions.value_range),
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
    where = str(path)
    values = read_json(path)
    if values.get("format") != FORMAT:
        raise InputError(
            f"{where}: 'format' is {values.get('format')!r}, expected '{FORMAT}'; this is no detector folder"
        )
    version = values.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise InputError(
            f"{where}: 'format_version' is {version!r}, this vovnet reads {FORMAT_VERSION}; a newer vovnet may read it"
        )
    _check_keys(values, _KEYS, where)
    if not isinstance(values["model"], dict):
        raise InputError(f"{where}: 'model' must be an object, got {type(values['model']).__name__}")
    for name, value in values["model"].items():
        if isinstance(value, list | dict):  # before OmegaConf reads them, which takes minutes for a long one
            _check_values(value, f"{where}: model.{name}")
    model = model_from_dict(values["model"], f"{where}: model")
    _check_model(model, where)
    categories = _check_categories(values["categories"], model, where)
    _check_preprocessing(values["preprocessing"], model, where)
    return DetectorConfig(model, categories, values["preprocessing"])


def _check_keys(values: Mapping[str, Any], expected: set[str], where: str) -> None:
    if unknown := sorted(set(values) - expected):
        raise InputError(
            f"{where}: unknown key {', '.join(map(repr, unknown))}; expected {', '.join(sorted(expected))}"
        )
    if missing := sorted(expected - set(values)):
        raise InputError(f"{where}: missing key {', '.join(map(repr, missing))}")


def _check_model(model: ModelRecipe, where: str) -> None:
    for name, (low, high) in _LIMITS.items():
        value = getattr(model, name)
        # Written so that NaN is refused too.
        if value is not None and not low <= value <= high:
            raise InputError(f"{where}: model.{name} is {value}, expected {low} to {high}")
    if model.conventions not in CONVENTIONS:
        raise InputError(f"{where}: model.conventions is '{model.conventions}', expected {' or '.join(CONVENTIONS)}")
    if model.num_classes is None:
        raise InputError(f"{where}: model.num_classes is missing; expected the number of categories")
    if any(character in model.backbone for character in ":/\\"):
        raise InputError(f"{where}: model.backbone is '{model.backbone}', expected the plain name of a timm model")
    if forbidden := sorted(_FORBIDDEN & set(model.backbone_args)):
        raise InputError(f"{where}: model.backbone_args.{forbidden[0]} is not allowed in a stored detector")
    for name in ("out_indices", "anchor_sizes", "aspect_ratios", "image_mean", "image_std", "backbone_args"):
        _check_values(getattr(model, name), f"{where}: model.{name}")


def _check_values(value: Any, where: str) -> None:
    """Bound lists and numbers at any depth."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        if len(value) > max(_MAX_LIST, 1024 if where.endswith(("mean", "std")) else 0):
            raise InputError(f"{where}: {len(value)} entries, expected at most {_MAX_LIST}")
        for entry in value:
            _check_values(entry, where)
    elif isinstance(value, int | float) and not (math.isfinite(value) and abs(value) <= 100_000):
        raise InputError(f"{where}: {value} is out of bounds")


def _check_categories(categories: Any, model: ModelRecipe, where: str) -> list[dict[str, Any]]:
    good = isinstance(categories, list) and all(
        isinstance(entry, dict)
        and set(entry) == {"id", "name"}
        and type(entry["id"]) is int
        and isinstance(entry["name"], str)
        for entry in categories
    )
    if not good:
        raise InputError(f'{where}: \'categories\' must be a list of {{"id": integer, "name": text}}')
    if len(categories) != model.num_classes:
        raise InputError(f"{where}: {len(categories)} categories, but model.num_classes is {model.num_classes}")
    if len({entry["id"] for entry in categories}) != len(categories):
        raise InputError(f"{where}: 'categories' has an id twice")
    return list(categories)


def _check_preprocessing(values: Any, model: ModelRecipe, where: str) -> None:
    if not isinstance(values, dict):
        raise InputError(f"{where}: 'preprocessing' must be an object")
    _check_keys(values, _PREPROCESSING_KEYS, f"{where}: preprocessing")
    for name, statistics in (("image_mean", model.image_mean), ("image_std", model.image_std)):
        if statistics is None or len(statistics) != model.in_chans:
            raise InputError(f"{where}: model.{name} must have model.in_chans = {model.in_chans} numbers")
    if min(model.image_std or [0]) <= 0:
        raise InputError(f"{where}: model.image_std must be above 0, got {model.image_std}")
    expected = _preprocessing(model)
    for key, value in values.items():
        if value != expected[key]:
            raise InputError(f"{where}: preprocessing.{key} is {value}, but the model part says {expected[key]}")
