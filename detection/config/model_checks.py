"""Is the ``model`` part of a recipe usable? One line that names the key if not."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vovnet.adapters.fpn import EXTRA_LEVELS, FPN_NORMS
from vovnet.adapters.norms import NORMS
from vovnet.detection.config.schema import CONVENTIONS, ModelRecipe
from vovnet.errors import InputError

_CHOICES: dict[str, tuple[str | None, ...]] = {
    "detector": ("faster_rcnn", "mask_rcnn"),
    "conventions": tuple(CONVENTIONS),
    "norm": NORMS,
    "fpn_norm": FPN_NORMS,
    "extra_level": tuple(EXTRA_LEVELS),
    "head_norm": (None, "gn"),
}
_POSITIVE = (
    "in_chans",
    "fpn_channels",
    "min_size",
    "max_size",
    "rpn_pre_nms_top_n_train",
    "rpn_pre_nms_top_n_test",
    "rpn_post_nms_top_n_train",
    "rpn_post_nms_top_n_test",
    "rpn_batch_size_per_image",
    "rpn_head_convs",
    "box_head_channels",
    "box_representation_size",
    "box_detections_per_img",
    "box_batch_size_per_image",
    "mask_head_convs",
    "mask_head_channels",
)


def check_model(model: ModelRecipe) -> None:
    """Check all that can be seen without building the model.

    Raises:
        InputError: a value cannot be used.
    """
    for key, allowed in _CHOICES.items():
        if getattr(model, key) not in allowed:
            _refuse(key, f"one of {', '.join('null' if a is None else a for a in allowed)}", getattr(model, key))
    if model.num_classes is None:
        raise InputError("model.num_classes is not set: give the number of object classes, without background")
    for key in (*_POSITIVE, "num_classes"):
        if not _is_positive_integer(getattr(model, key)):
            _refuse(key, "a positive integer", getattr(model, key))
    if model.box_head_convs < 0:
        _refuse("box_head_convs", "0 or more", model.box_head_convs)
    for key in ("box_score_thresh", "box_nms_thresh"):
        if not 0 <= getattr(model, key) <= 1:
            _refuse(key, "a number from 0 to 1", getattr(model, key))
    if model.max_size < model.min_size:
        _refuse("max_size", f"at least model.min_size, {model.min_size}", model.max_size)
    if model.trainable_stages is not None and model.trainable_stages < 0:
        _refuse("trainable_stages", "null or 0 and up", model.trainable_stages)
    if not model.aspect_ratios or not all(_is_positive(r) for r in model.aspect_ratios):
        _refuse("aspect_ratios", "positive numbers (height / width)", model.aspect_ratios)
    _check_normalisation(model)


def _check_normalisation(model: ModelRecipe) -> None:
    for key, values in (("image_mean", model.image_mean), ("image_std", model.image_std)):
        if values is None:
            continue
        if len(values) != model.in_chans or not all(math.isfinite(v) for v in values):
            _refuse(key, f"{model.in_chans} numbers, one a channel (model.in_chans)", values)
    if model.image_std is not None and not all(v > 0 for v in model.image_std):
        _refuse("image_std", "positive numbers", model.image_std)


def check_anchors(model: ModelRecipe, levels: int) -> None:
    """Check the anchor sizes against the number of pyramid levels.

    Raises:
        InputError: not a list for each level, or not as many sizes in each (one RPN head serves all levels).
    """
    sizes: Sequence[Sequence[int]] | None = model.anchor_sizes
    if sizes is None:
        return
    if len(sizes) != levels:
        _refuse("anchor_sizes", f"{levels} lists, one a pyramid level (model.extra_level counts)", sizes)
    if len({len(level) for level in sizes}) != 1 or not all(level for level in sizes):
        _refuse("anchor_sizes", "as many sizes at each level, at least one", sizes)
    if not all(_is_positive(size) for level in sizes for size in level):
        _refuse("anchor_sizes", "positive pixels", sizes)


def _is_positive_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def _refuse(key: str, expected: str, got: object) -> None:
    raise InputError(f"model.{key} must be {expected}; got {got!r}")
