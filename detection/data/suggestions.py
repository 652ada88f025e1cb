"""Which values of a recipe follow from a dataset's images and objects, and why."""

from __future__ import annotations

import json
from dataclasses import dataclass

import numpy as np

from vovnet.detection.data.object_sizes import ObjectSizes
from vovnet.results.limits import tile_options


@dataclass(frozen=True)
class Suggestion:
    """A value of a recipe, and the reason for it."""

    key: str
    """Such as ``model.min_size``."""
    value: object
    """A number, or lists of numbers."""
    reason: str
    """A part of a sentence."""

    @property
    def override(self) -> str:
        """The value as :func:`~vovnet.detection.config.loading.load_recipe` takes it, ``key=value``."""
        return f"{self.key}={json.dumps(self.value, ensure_ascii=False)}"  # which is YAML, too

    def __str__(self) -> str:
        return f"{self.override}  ({self.reason})"


@dataclass(frozen=True)
class Scale:
    """How large images and objects are to be for a detector."""

    object_side: float
    """Pixels that all but the smallest twentieth of the objects have at least after the resize, if images allow it."""
    longest: int
    """Upper limit of an image's long side in pixels, which bounds time and memory."""


SMALL = Scale(object_side=20, longest=512)
"""For training on a CPU."""
LARGE = Scale(object_side=32, longest=1344)
"""For training on a GPU."""

_STEP = 32
"""Image sizes are multiples of it, the stride of the backbone's last level."""
_LEAST_SIZE, _MOST_ENLARGED = 128, 2.0
_SMALLEST = 5
"""Percentile of the sides of objects that the resize and the smallest anchor are for."""
_LEVELS = 5
_LEAST_ANCHOR, _USUAL_ANCHOR = 8, 32
_USUAL_DETECTIONS, _SPARE = 100, 1.5
_CROP = 0.75
"""Side of a resized crop, as a part of the longest side of an image: its area is that of an image of 16:9."""
_TOO_SMALL = 2 / 3
"""Objects with less than this part of the wanted size are worth the trouble of crops, …"""
_MUCH_SMALLER = 2 / 3
"""… if these have at most this part of an image's long side."""
_DENSER = 3.0
"""Objects of a crop may lie so many times as close as those of the image."""
_USUAL_ASPECTS = (0.4, 2.5)
"""Aspect ratios that the usual anchors (0.5, 1 and 2) fit."""


def suggest(sizes: ObjectSizes, scale: Scale, *, anchors: bool = True, crops: bool = True) -> list[Suggestion]:
    """Return the values of a recipe that follow from the sizes of images and objects.

    Args:
        sizes: of the training data, or of crops of it.
        scale: :data:`SMALL` or :data:`LARGE`.
        anchors: suggest sizes and aspect ratios of anchors for a pyramid of five levels, as Faster R-CNN has it.
        crops: suggest ``data.crop``, and the other values for crops, where images are too large for their objects.
    """
    crop = crop_side(sizes, scale) if crops else None
    found = [] if crop is None else [_crop(sizes, scale, crop)]
    seen = sizes if crop is None else sizes.cropped(crop)
    resize = image_sizes(seen, scale)
    least, most = (int(str(one.value)) for one in resize[:2])
    found += resize
    if anchors:
        found += _anchors(seen, least, most)
    return [*found, *_detections(sizes, crop)]


def crop_side(sizes: ObjectSizes, scale: Scale) -> int | None:
    """Return the side in pixels of crops in which small objects get the size of a scale, or None without need.

    There is need if the resize of whole images, which time and memory bound, leaves a twentieth of the objects with
    less than :data:`_TOO_SMALL` of that size, and crops then are much smaller than the images.
    """
    small = float(np.percentile(sizes.sides, _SMALLEST))
    factor = min(scale.object_side / max(small, 1e-6), _MOST_ENLARGED)
    longest = float(np.median(sizes.shapes.max(axis=1)))
    if longest * factor * _TOO_SMALL <= scale.longest:
        return None
    large = float(np.percentile(sizes.boxes.max(axis=1), 95))
    side = _rounded(max(_CROP * scale.longest / factor, 2 * large), up=True)
    return side if side <= _MUCH_SMALLER * longest else None


def _crop(sizes: ObjectSizes, scale: Scale, side: int) -> Suggestion:
    height, width = sizes.median_image
    whole = float(np.percentile(sizes.sides, _SMALLEST)) * min(1.0, scale.longest / max(height, width))
    reason = (
        f"images of {width:.0f}×{height:.0f} pixels are cut, because of 20 objects one would have less than "
        f"{whole:.2g} pixels in whole ones; give predict and evaluate {tile_options(side, sizes.median)}"
    )
    return Suggestion("data.crop", side, reason)


def crops_per_image(sizes: ObjectSizes, side: int) -> float:
    """Return how many crops cover an image, on average."""
    return float(np.ceil(sizes.shapes / side).prod(axis=1).mean())


def image_sizes(sizes: ObjectSizes, scale: Scale) -> list[Suggestion]:
    """Return ``model.min_size``, ``model.max_size`` and the sizes in training, which vary around them."""
    shorts, longs = sizes.shapes.min(axis=1), sizes.shapes.max(axis=1)
    short, ratio = float(np.median(shorts)), float(np.percentile(longs / shorts, 95))
    small = float(np.percentile(sizes.sides, _SMALLEST))
    factor = min(scale.object_side / max(small, 1e-6), _MOST_ENLARGED)
    # Images without detail to lose are not enlarged unless their objects are too small to be found.
    factor = max(factor, min(1.0, _LEAST_SIZE / short))
    wanted = _rounded(short * factor)
    least = max(_STEP, min(wanted, int(scale.longest / ratio) // _STEP * _STEP))
    most = min(_rounded(least * ratio, up=True), max(scale.longest, least))
    after = float(np.percentile(sizes.resized_sides(least, most), _SMALLEST))
    resized = f"of 20 objects one is smaller than {small:.3g} pixels in the images, {after:.3g} after this resize"
    varied = sorted({_rounded(least * part, 8) for part in (0.875, 0.9375, 1, 1.0625)})
    return [
        Suggestion("model.min_size", least, resized),
        Suggestion("model.max_size", most, f"the images are up to {ratio:.3g} times as long as wide"),
        Suggestion("data.train_min_sizes", varied, "sizes around model.min_size"),
        Suggestion("data.train_max_size", _rounded(most * 1.0625, 8, up=True), "the same for the long side"),
    ]


def _anchors(sizes: ObjectSizes, least: int, most: int) -> list[Suggestion]:
    """Return anchors whose smallest fits the smallest twentieth of the objects; each level doubles the size."""
    side = float(np.percentile(sizes.resized_sides(least, most), _SMALLEST))
    # An anchor and a square of half or twice its area have an IoU of 0.5.
    first = int(min(_USUAL_ANCHOR, max(_LEAST_ANCHOR, round(side * 2**0.5))))
    found = [
        Suggestion(
            "model.anchor_sizes",
            [[first * 2**level] for level in range(_LEVELS)],
            f"for objects from {side:.3g} pixels on",
        )
    ]
    heights_by_widths = sizes.boxes[:, 1] / np.maximum(sizes.boxes[:, 0], 1e-6)
    low, high = (float(np.percentile(heights_by_widths, part)) for part in (5, 95))
    if low < _USUAL_ASPECTS[0] or high > _USUAL_ASPECTS[1]:
        ratios = [_shape(min(low * 1.25, 0.5)), 1.0, _shape(max(high / 1.25, 2.0))]
        reason = f"boxes are {low:.2g} to {high:.2g} times as high as wide, but for a tenth"
        found.append(Suggestion("model.aspect_ratios", ratios, reason))
    return found


def _detections(sizes: ObjectSizes, crop: int | None) -> list[Suggestion]:
    """Return higher limits of detections and proposals, for images that are crowded."""
    most, reason = float(sizes.most), f"an image has up to {sizes.most} objects"
    if crop is not None:  # where they lie is not known
        shares = np.minimum(1.0, _DENSER * crop**2 / sizes.shapes.prod(axis=1))
        most = float((sizes.counts * shares).max())
        reason += f", and a crop may have {most:.0f}"
    needed = round(_SPARE * most)
    if needed <= _USUAL_DETECTIONS:
        return []
    return [Suggestion("model.box_detections_per_img", _rounded(needed, 50, up=True), reason)]


def _shape(ratio: float) -> float:
    return float(f"{min(max(ratio, 0.05), 20.0):.2g}")


def _rounded(value: float, step: int = _STEP, *, up: bool = False) -> int:
    whole = -int(-value // step) if up else round(value / step)
    return max(step, whole * step)
