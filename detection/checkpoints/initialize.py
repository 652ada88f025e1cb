"""Start a training from another detector's weights or from a backbone's (the recipe's key ``init``)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from vovnet.checkpoints.safetensors_file import open_safetensors
from vovnet.checkpoints.shapes import Shapes, refuse_differences, shapes_of
from vovnet.detection.checkpoints.config_json import read_config
from vovnet.detection.checkpoints.folder import find_folder
from vovnet.detection.checkpoints.network_facts import check_start, check_strides, keep_norms, read_facts
from vovnet.detection.config.schema import ConventionName
from vovnet.errors import InputError
from vovnet.files import CONFIG_FILE, WEIGHTS_FILE, read_json

# The parts whose shapes depend on the number of classes.
_PREDICTORS = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.")


def load_matching(
    detector: nn.Module, name_or_folder: str | os.PathLike[str], conventions: ConventionName | None = None
) -> list[str]:
    """Load another detector's weights into a detector, or a timm model's weights into its backbone.

    Predictors for another number of classes keep their random weights. With a backbone, all other parts keep theirs.

    Args:
        detector: The detector that receives the weights, in place.
        name_or_folder: As in :func:`vovnet.hub.load_detector`; the categories may be others. A folder in timm's form
            holds a backbone.
        conventions: The detector's conventions, which the weights must follow: a detector's conventions must be the
            same, a backbone must be for the same images, and a ResNet must have its strides in the same place. None
            accepts any.

    Returns:
        The keys that were not loaded: box and mask predictors of other shapes, or the parts beside the backbone.

    Raises:
        InputError: Anything but the predictors differs, or the files cannot be read.
    """
    folder = find_folder(name_or_folder, None)
    config = read_json(folder / CONFIG_FILE)
    if "architecture" in config:
        facts = read_facts(config, folder / CONFIG_FILE)
        if conventions is not None:
            check_start(facts, detector, conventions, str(name_or_folder))
        fresh = _load_backbone(detector, folder / WEIGHTS_FILE)
        if facts.norm_eps is not None:
            keep_norms(detector.get_submodule("backbone.body"), facts.norm_eps)
        return fresh
    model = read_config(folder / CONFIG_FILE).model
    theirs = model.conventions
    if conventions not in (None, theirs):
        raise InputError(
            f"init: '{name_or_folder}' is of conventions: {theirs}, whose images and boxes are not those of "
            f"conventions: {conventions}; train with model.conventions={theirs}"
        )
    if conventions is not None:
        check_strides(theirs == "legacy" and model.stride_in_1x1 is not False, detector, str(name_or_folder))
    expected = shapes_of(detector.state_dict())
    with open_safetensors(folder / WEIGHTS_FILE) as weights:
        found = weights.shapes()
        fresh = [
            key
            for key, shape in expected.items()
            if key.startswith(_PREDICTORS) and key in found and found[key] != shape
        ]
        # Frozen norms have no counters of batches and other norms do; either can start from the other.
        counters = [key for key in {*expected, *found} if key.endswith(".num_batches_tracked")]
        refuse_differences(weights.path, _without(expected, fresh + counters), _without(found, fresh + counters))
        tensors = weights.tensors()
    detector.load_state_dict({key: tensor for key, tensor in tensors.items() if key not in fresh}, strict=False)
    return fresh


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
    counters = [key for key in {*expected, *tensors} if key.endswith(".num_batches_tracked")]
    # The detector has no classifier and no stages behind its last level. Other unknown keys mean another network.
    unused = [key for key in tensors if key.partition(".")[0] not in parts]
    found = _without(shapes_of(tensors), unused + counters)
    refuse_differences(weights, _without(expected, counters), found)
    body.load_state_dict({key: tensors[key] for key in found}, strict=False)
    return sorted({f"{name}.*" for name in ("backbone.fpn", "rpn", "roi_heads")})


def _without(shapes: Shapes, keys: Iterable[str]) -> dict[str, tuple[int, ...]]:
    left_out = set(keys)
    return {key: shape for key, shape in shapes.items() if key not in left_out}
