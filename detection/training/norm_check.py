"""Refuse a training in which torch could not compute a norm: its group or batch would hold a single value.

``torch.nn.functional.group_norm`` and ``batch_norm`` raise for it ("Expected more than 1 value per channel"), in the
middle of a run if small images are rare. Group norms do so in evaluation, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vovnet.adapters.norms import GROUPS
from vovnet.detection.config.data import DataRecipe
from vovnet.detection.config.detectors import DETECTORS
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.config.schema import Recipe
from vovnet.detection.data.object_sizes import sizes_of
from vovnet.detection.models.single_values import SingleValue, single_value
from vovnet.errors import InputError
from vovnet.results.limits import resize_factor

_KEYS = {"backbone.body.": "model.norm", "backbone.fpn.": "model.fpn_norm"}
"""The key of a recipe that chooses the norms of a part; those of heads are ``model.head_norm``."""
_STRIDES = (32, 64, 128, 256, 512)
"""Strides in pixels of the levels of pyramids that may have a single pixel; images above the last have more on all."""


def check_norm_values(recipe: Recipe, train_dataset: Any, val_dataset: Any | None, images: int, processes: int) -> None:
    """Check that no norm gets a single value in the training or its evaluations.

    Args:
        recipe: the recipe of the run.
        train_dataset: the training data.
        val_dataset: the validation data, or None.
        images: images of a pass in a process.
        processes: processes of the run.

    Raises:
        InputError: a norm would; the message names its key, what it gets, and the keys that mend it.
    """
    model = recipe.model
    size = _smallest(_shapes(train_dataset), *_training_resize(recipe.data))
    if images == 1 and _may_fail(model, size, training=True):
        found = single_value(model, images, size, training=True, processes=processes)
        if found is not None:
            raise InputError(_refusal(model, found, size, _training_keys(recipe.data), training=True))
    if val_dataset is not None:  # images are evaluated one by one
        shapes = _shapes(val_dataset)
        if recipe.data.crop is not None:  # in tiles
            shapes = np.minimum(shapes, recipe.data.crop)
        size = _smallest(shapes, model.min_size, model.max_size)
        if _may_fail(model, size, training=False):
            found = single_value(model, 1, size, training=False)
            if found is not None:
                raise InputError(_refusal(model, found, size, "model.min_size", training=False))


def _may_fail(model: ModelRecipe, size: tuple[int, int], *, training: bool) -> bool:
    """Return False where no norm of a recipe can get a single value, without building anything."""
    facts = DETECTORS[model.detector]
    head = model.head_norm or ("gn" if facts.points else None)
    norms = {model.norm, model.fpn_norm, head if facts.one_stage else None}
    if training and norms & {"bn", "sync_bn"}:
        return True  # whatever the size: some networks have batch norms behind a pooling of the whole map
    return "gn" in norms and max(size) <= _STRIDES[-1]


def _training_resize(data: DataRecipe) -> tuple[float, float]:
    """Return the smallest short side and its limit of the long side, in pixels, to which images are scaled."""
    if data.scale_jitter is None:
        return min(data.train_min_sizes), data.train_max_size
    return data.scale_jitter[0] * data.train_max_size, data.scale_jitter[0] * data.train_max_size


def _training_keys(data: DataRecipe) -> str:
    return "data.train_min_sizes" if data.scale_jitter is None else "data.train_max_size"


def _shapes(dataset: Any) -> NDArray[Any]:
    """Return height and width of each image in pixels; one square stands for images of unknown sizes."""
    sizes = sizes_of(dataset)
    return np.array([[1, 1]]) if sizes is None else sizes.shapes


def _smallest(shapes: NDArray[Any], min_size: float, max_size: float) -> tuple[int, int]:
    """Return height and width of the image whose long side is the shortest after the resize, in pixels."""
    scaled = np.maximum(shapes * resize_factor(shapes, min_size, max_size)[:, None], 1).astype(int)
    height, width = scaled[scaled.max(axis=1).argmin()]
    return int(height), int(width)


def _refusal(model: ModelRecipe, found: SingleValue, size: tuple[int, int], sizes: str, *, training: bool) -> str:
    key = next((key for part, key in _KEYS.items() if found.name.startswith(part)), "model.head_norm")
    mends = []
    if found.grouped and not found.name.startswith("backbone.body."):
        mends.append(f"model.fpn_channels={2 * GROUPS} (a group of {GROUPS} groups then has two)")
    enough = (side for side in _STRIDES if single_value(model, 1, (side + 1, side + 1), training=training) is None)
    if (side := next(enough, None)) is not None:
        mends.append(f"{sizes} above {side}")
    if training:
        mends.append("two images or more a pass (solver.batch_size, solver.accumulate)")
    if not found.grouped:
        mends.append(f"{key}={'frozen_bn' if key == 'model.norm' and model.pretrained else 'gn'}")
    what = "group norm of one channel a group" if found.grouped else "batch norm"
    when = "a pass of one image" if training else "the evaluation of one image"
    return (
        f"{key}: expected more than one value for each mean, got one: '{found.name}' is a {what}, whose map is one "
        f"pixel in {when} of {size[0]}×{size[1]} pixels ({sizes}); give {', or '.join(mends)}"
    )
