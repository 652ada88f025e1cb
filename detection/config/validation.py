"""Checks between the values of a recipe, which the bounds of a single field cannot say."""

from __future__ import annotations

import dataclasses

from vovnet.detection.config.detectors import DETECTORS
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.config.parts import is_given, shown
from vovnet.detection.config.schema import Recipe
from vovnet.errors import InputError


def check_recipe(recipe: Recipe) -> None:
    """Check everything but the model, which is checked where the detector is built.

    Raises:
        InputError: the message names the key, what was expected and what stands there.
    """
    for part in (recipe.model, recipe.data, recipe.solver, recipe.log):
        dataclasses.replace(part)  # the constructor checks again what was assigned since
    solver, jitter = recipe.solver, recipe.data.scale_jitter
    if solver.nesterov and not solver.momentum:
        _refuse("solver.nesterov", "a solver.momentum above 0 with it", solver.momentum)
    if any(later <= earlier for earlier, later in zip(solver.steps, solver.steps[1:], strict=False)):
        _refuse("solver.steps", "increasing iterations", solver.steps)
    if jitter is not None and jitter[0] > jitter[1]:
        _refuse("data.scale_jitter", "[low, high] with low <= high", jitter)
    if recipe.data.colour and recipe.model.in_chans not in (1, 3):
        _refuse(
            "data.colour", f"0 with model.in_chans={recipe.model.in_chans}: they are no colours", recipe.data.colour
        )


def check_model(model: ModelRecipe) -> None:
    """Check everything that can be seen without building the model.

    Raises:
        InputError: a value cannot be used.
    """
    dataclasses.replace(model)  # as above
    if model.num_classes is None:
        raise InputError("model.num_classes is not set: give the number of object classes, without background")
    if model.max_size < model.min_size:
        _refuse("model.max_size", f"at least model.min_size, {model.min_size}", model.max_size)
    facts = DETECTORS[model.detector]
    if model.conventions == "legacy" and not facts.legacy:
        known = ", ".join(name for name, one in DETECTORS.items() if one.legacy)
        _refuse("model.detector", f"one of {known} with model.conventions=legacy", model.detector)
    if facts.needs_keypoints and model.num_keypoints is None:
        raise InputError("model.num_keypoints is not set: give the number of keypoints of an object")
    if facts.needs_keypoints and model.keypoint_sigmas and len(model.keypoint_sigmas) != model.num_keypoints:
        expected = f"model.num_keypoints = {model.num_keypoints} numbers, one a keypoint"
        _refuse("model.keypoint_sigmas", expected, model.keypoint_sigmas)
    if model.stride_in_1x1 and model.conventions != "legacy":
        _refuse("model.stride_in_1x1", "null or false, as timm's networks have their stride in the 3×3", True)
    for key in ("image_mean", "image_std"):
        values = getattr(model, key)
        if values is not None and len(values) != model.in_chans:
            _refuse(f"model.{key}", f"{model.in_chans} numbers, one a channel (model.in_chans)", values)


def check_anchors(model: ModelRecipe, levels: int) -> None:
    """Check the anchor sizes against the number of pyramid levels.

    Raises:
        InputError: there is not one list for each level, or the lists differ in length. One RPN head serves all
            levels.
    """
    sizes = model.anchor_sizes
    if DETECTORS[model.detector].points:
        _check_points(model)
    if sizes is None:
        return
    if len(sizes) != levels:
        _refuse("model.anchor_sizes", f"{levels} lists, one a pyramid level (model.extra_level counts)", sizes)
    if len({len(level) for level in sizes}) != 1 or not sizes[0]:
        _refuse("model.anchor_sizes", "as many sizes at each level, at least one", sizes)


def _check_points(model: ModelRecipe) -> None:
    """Check what a detector without anchors leaves open: one point a place, whose unit is one size a level."""
    if any(len(level) != 1 for level in model.anchor_sizes or []):
        expected = "one size a level, the unit of its boxes, or null for the strides"
        _refuse("model.anchor_sizes", expected, model.anchor_sizes)
    if is_given(model, "aspect_ratios") and model.aspect_ratios not in ([1.0], [0.5, 1.0, 2.0]):
        _refuse("model.aspect_ratios", f"[1.0]: {model.detector} has no other boxes; leave it out", model.aspect_ratios)


def _refuse(key: str, expected: str, got: object) -> None:
    raise InputError(f"{key}: expected {expected}, got {shown(got)}")
