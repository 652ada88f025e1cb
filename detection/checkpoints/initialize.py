"""Start a training from another detector's weights or from a backbone's (the recipe's key ``init``)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vovnet.checkpoints.places import is_torchvision
from vovnet.checkpoints.safetensors_file import open_safetensors
from vovnet.checkpoints.shapes import Shapes, refuse_differences, shapes_of
from vovnet.checkpoints.timm_folder import SAME_NETWORK_ARGS
from vovnet.detection.checkpoints.folder import StoredDetector, find_folder, stored_detector
from vovnet.detection.checkpoints.network_facts import check_start, check_strides, read_facts
from vovnet.detection.checkpoints.norm_eps import frozen_norms, kept_norms, norm_eps_of
from vovnet.detection.checkpoints.torchvision_detectors import NETWORKS, NORM_EPS, torchvision_detector
from vovnet.detection.config.conventions import ConventionName
from vovnet.detection.config.detectors import DETECTORS
from vovnet.detection.config.model import SETTINGS, ModelRecipe
from vovnet.detection.config.parts import is_given, shown
from vovnet.detection.config.schema import Recipe
from vovnet.errors import InputError
from vovnet.files import CONFIG_FILE, WEIGHTS_FILE, read_json

_PREDICTORS = tuple({part: None for facts in DETECTORS.values() for part in facts.class_parts})
_OWN_PARTS = [facts.own_parts for facts in DETECTORS.values() if facts.own_parts]
_OPTIONAL = ("mask_head", "keypoint_head")
"""Keys of the model whose parts some detectors lack."""
_NEVER_TAKEN = ("pretrained", "detector", "num_classes", "num_keypoints")
"""Keys of the model that are the recipe's or its data's, and never torchvision's."""
_COUNTER = ".num_batches_tracked"

_SAME_WEIGHTS = ("frozen_bn", "bn", "sync_bn")
"""Norms that have the same weights and compute the same in evaluation."""
_RECIPES_OWN = {
    *("detector", "num_classes", "trainable_stages"),
    *("image_mean", "image_std", "anchor_sizes", "aspect_ratios"),
} | SETTINGS
"""Keys of the model that a recipe may set beside the network of its ``init``."""


@dataclass(frozen=True)
class Start:
    """The result of loading other weights: where they came from, and which tensors were not loaded."""

    source: str
    """The name of the weights, for the user."""
    fresh: list[str]
    """Tensors and parts (``backbone.fpn.*``) that keep their random weights."""
    left_out: list[str]
    """Parts of the other detector that this one has no place for."""

    def __str__(self) -> str:
        text = f"weights from {self.source}; started anew: {', '.join(self.fresh) or 'nothing'}"
        return text + (f"; left out: {', '.join(self.left_out)}" if self.left_out else "")


def with_network_of_init(recipe: Recipe) -> Recipe:
    """Return a recipe with the network of its ``init`` if that is ``torchvision:NAME``; any other recipe unchanged.

    Keys that the recipe does not give take torchvision's value. Others stay if the weights fit them: sizes, thresholds,
    numbers of boxes, anchors, normalisation, and norms of another kind with the same weights.

    Raises:
        InputError: A key of the network contradicts torchvision's; or torchvision has no such detector.
    """
    if not is_torchvision(recipe.init):
        return recipe
    own, theirs = recipe.model, torchvision_detector(recipe.init).model
    taken: dict[str, Any] = {"pretrained": True}  # the weights of init are trained ones
    for key in (field.name for field in fields(ModelRecipe)):
        expected = getattr(theirs, key)
        if key in _NEVER_TAKEN or getattr(own, key) == expected:
            continue
        if not is_given(own, key):
            taken[key] = expected
        elif not (key in _RECIPES_OWN or _fits(key, own, theirs)):
            raise InputError(_contradiction(key, getattr(own, key), expected, str(recipe.init)))
    if taken.get("norm_eps") == 0 and own.norm != "frozen_bn" and "norm" not in taken:
        del taken["norm_eps"]  # a norm that trains divides by the deviation of a batch, which may be 0
    return replace(recipe, model=replace(own, **taken))


def network_text(recipe: Recipe) -> str:
    """Return the keys that describe torchvision's network, as a recipe writes them; empty for other starts."""
    if not is_torchvision(recipe.init):
        return ""
    network = NETWORKS[torchvision_detector(recipe.init).name]
    text = ", ".join(
        f"model.{key}={shown(getattr(recipe.model, key))}" for key in sorted(network.keys() - {"detector"})
    )
    if network.get("norm_eps") == 0 and recipe.model.norm_eps != 0:
        text += " (torchvision's 0.0 is for frozen norms, and these train)"
    return text


def _contradiction(key: str, own: Any, expected: Any, init: str) -> str:
    if key == "backbone_args":
        others = sorted(own.keys() - SAME_NETWORK_ARGS)
        return f"model.backbone_args: {others[0]} may change what the weights of init={init} compute; leave it out"
    return (
        f"model.{key}: {shown(own)} contradicts init={init}, whose network has {shown(expected)}; give "
        f"model.{key}={shown(expected)}, or leave it out"
    )


def _fits(key: str, own: ModelRecipe, theirs: ModelRecipe) -> bool:
    """Return True if torchvision's weights mean the same with the recipe's own value of a key of the network."""
    value, expected = getattr(own, key), getattr(theirs, key)
    if key == "backbone":
        return str(value).partition(".")[0] == expected  # with the tag of other weights, which are not loaded
    if key == "backbone_args":
        return value.keys() <= SAME_NETWORK_ARGS
    if key == "stride_in_1x1":
        return not value
    if key == "norm_eps":
        trains = own.norm != "frozen_bn" and is_given(own, "norm")
        same = (NORM_EPS if value is None else value) == (NORM_EPS if expected is None else expected)
        return same or (expected == 0 and trains)
    if key.startswith(_OPTIONAL) and not DETECTORS[theirs.detector].own_parts:
        return True
    return key.endswith("norm") and value in _SAME_WEIGHTS and expected in _SAME_WEIGHTS


def load_matching(
    detector: nn.Module, name_or_folder: str | os.PathLike[str], conventions: ConventionName | None = None
) -> Start:
    """Load another detector's weights into a detector, or a timm model's weights into its backbone.

    Predictors for another number of classes keep their random weights, and so does a mask or keypoint head if the
    other detector has none. The other detector's head is left out if this one has none. With a backbone, all other
    parts keep theirs.

    Args:
        detector: The detector that receives the weights, in place.
        name_or_folder: As in :func:`vovnet.hub.load_detector`; the categories may be others. A folder in timm's form
            holds a backbone.
        conventions: The detector's conventions, which the weights must follow: a detector's conventions must be the
            same, a backbone must be for the same images, and a ResNet must have its strides in the same place. None
            accepts any.

    Returns:
        What was not loaded, and what was not used.

    Raises:
        InputError: Anything else differs, or the files cannot be read; or frozen norms have a larger epsilon than the
            norms that the weights are of.
    """
    place = name_or_folder
    if not is_torchvision(name_or_folder):
        place = find_folder(name_or_folder, None)
        config = read_json(place / CONFIG_FILE)
        if "architecture" in config:
            facts = read_facts(config, place / CONFIG_FILE)
            if conventions is not None:
                check_start(facts, detector, conventions, str(name_or_folder))
            norms = frozen_norms(detector)
            eps = {} if facts.norm_eps is None else dict.fromkeys(norms, facts.norm_eps)
            with kept_norms(norms, eps, str(name_or_folder)):
                return Start(str(name_or_folder), _load_backbone(detector, place / WEIGHTS_FILE), [])
    with stored_detector(place) as stored:
        if conventions is not None:
            _check_conventions(stored.config.model, detector, conventions, str(name_or_folder))
        return _load_detector(detector, stored, str(name_or_folder))


def _check_conventions(theirs: ModelRecipe, detector: nn.Module, conventions: ConventionName, name: str) -> None:
    if conventions != theirs.conventions:
        raise InputError(
            f"init: '{name}' is of conventions: {theirs.conventions}, whose images and boxes are not those of "
            f"conventions: {conventions}; train with model.conventions={theirs.conventions}"
        )
    check_strides(conventions == "legacy" and theirs.stride_in_1x1 is not False, detector, name)


def _load_detector(detector: nn.Module, stored: StoredDetector, name: str) -> Start:
    expected, found = shapes_of(detector.state_dict()), stored.shapes
    predictors = [
        key for key, shape in expected.items() if key.startswith(_PREDICTORS) and key in found and found[key] != shape
    ]
    anew, left_out = _parts_of_one(expected, found), _parts_of_one(found, expected)
    # Frozen norms have no counters of batches and other norms do; either can start from the other.
    counters = [key for key in {*expected, *found} if key.endswith(_COUNTER)]
    unequal = {*predictors, *counters, *(key for key in {*expected, *found} if key.startswith((*anew, *left_out)))}
    refuse_differences(stored.path, _without(expected, unequal), _without(found, unequal))
    tensors = {
        key: tensor
        for key, tensor in stored.tensors().items()
        if key not in predictors and not key.startswith(tuple(left_out))
    }
    norms = frozen_norms(detector)
    with kept_norms(norms, norm_eps_of(stored.empty()) if norms else {}, name):
        detector.load_state_dict(tensors, strict=False)
    return Start(stored.title or name, predictors + [f"{part}*" for part in anew], [f"{part}*" for part in left_out])


def _parts_of_one(keys: Iterable[str], others: Iterable[str]) -> list[str]:
    """Return the parts of a kind of detectors, such as the mask head, of which there are tensors only in ``keys``."""
    return [
        part
        for parts in _OWN_PARTS
        if any(key.startswith(parts) for key in keys) and not any(key.startswith(parts) for key in others)
        for part in parts
    ]


def _load_backbone(detector: nn.Module, weights: Path) -> list[str]:
    """Load a timm model's weights into a timm feature extractor.

    The extractor lacks the classifier, and its keys join the first two parts of the model's (``stem.0`` → ``stem_0``).
    """
    body: Any = detector.get_submodule("backbone.body")
    expected = shapes_of(body.state_dict())
    parts = {key.partition(".")[0] for key in expected}
    tensors: dict[str, Tensor] = {}
    with open_safetensors(weights) as file:
        for key, tensor in file.tensors().items():
            joined = key.replace(".", "_", 1)
            tensors[joined if joined.partition(".")[0] in parts else key] = tensor
    counters = [key for key in {*expected, *tensors} if key.endswith(_COUNTER)]
    # The detector has no classifier and no stages behind its last level. Other unknown keys mean another network.
    unused = [key for key in tensors if key.partition(".")[0] not in parts]
    found = _without(shapes_of(tensors), unused + counters)
    refuse_differences(weights, _without(expected, counters), found)
    body.load_state_dict({key: tensors[key] for key in found}, strict=False)
    others = {name.partition(".")[0] for name, _ in detector.named_parameters()} - {"backbone"}
    return sorted(f"{name}.*" for name in ("backbone.fpn", *others))


def _without(shapes: Shapes, keys: Iterable[str]) -> dict[str, tuple[int, ...]]:
    left_out = set(keys)
    return {key: shape for key, shape in shapes.items() if key not in left_out}
