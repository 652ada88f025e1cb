"""Warn before a training whose limits would lose objects: a resize that makes them tiny, too few detections."""

from __future__ import annotations

import warnings

import numpy as np

from vovnet.detection.config.data import DataRecipe
from vovnet.detection.config.schema import Recipe
from vovnet.detection.data.object_sizes import ObjectSizes
from vovnet.results.limits import SMALLEST_SIDE, LimitWarning


def warn_of_training_limits(recipe: Recipe, sizes: ObjectSizes) -> None:
    """Warn if the resize in training or at test time makes the median object smaller than
    :data:`~vovnet.results.limits.SMALLEST_SIDE`, or if images have more objects than detections."""
    model, data = recipe.model, recipe.data
    resizes = (
        (_training_median(data, sizes), _training_keys(data)),
        (
            sizes.resized_median(model.min_size, model.max_size),
            f"model.min_size {model.min_size}, model.max_size {model.max_size}",
        ),
    )
    small = [(median, keys) for median, keys in resizes if median < min(SMALLEST_SIDE, sizes.median)]
    if small:
        listed = ", and ".join(f"{median:.2g} pixels after the resize ({keys})" for median, keys in small)
        warnings.warn(
            f"data.train: the median object has {sizes.median:.3g} pixels in the images, but {listed}; below "
            f"{SMALLEST_SIDE:g} many are not found: raise these, or cut the images (data.crop; predict with --tile)",
            LimitWarning,
            stacklevel=3,
        )
    limit = model.box_detections_per_img
    if sizes.most > limit and data.crop is None:  # crops and tiles have fewer
        warnings.warn(
            f"data.train: {int((sizes.counts > limit).sum())} of {len(sizes.shapes)} images have more objects (up to "
            f"{sizes.most}) than the {limit} detections that model.box_detections_per_img allows: raise it",
            LimitWarning,
            stacklevel=3,
        )


def _training_median(data: DataRecipe, sizes: ObjectSizes) -> float:
    if data.scale_jitter is None:
        return sizes.resized_median(float(np.median(data.train_min_sizes)), data.train_max_size)
    # The image is scaled to fit a square, times a factor between the two.
    return sizes.resized_median(data.train_max_size, data.train_max_size) * sum(data.scale_jitter) / 2


def _training_keys(data: DataRecipe) -> str:
    if data.scale_jitter is not None:
        return f"data.train_max_size {data.train_max_size}, data.scale_jitter {data.scale_jitter}"
    least, most = min(data.train_min_sizes), max(data.train_min_sizes)
    shorts = f"{least}" if least == most else f"{least} to {most}"
    return f"data.train_min_sizes {shorts}, data.train_max_size {data.train_max_size}"
