"""What a dataset consists of: objects in an image, sizes and shapes of boxes, balance of classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from vovnet.detection.data.checked_images import CheckedImage
from vovnet.detection.data.object_sizes import ObjectSizes
from vovnet.errors import shown

_SMALL, _LARGE = 32, 96
"""Sides in pixels below which a box is small, and from which on it is large, as in COCO's evaluation."""
_FEW = 20
"""Classes with fewer objects are named: a detector hardly learns them."""
_UNBALANCED = 20
"""The most frequent class has this many times the objects of the rarest before that is mentioned."""


def sizes_of_images(images: Sequence[CheckedImage]) -> ObjectSizes | None:
    """Return the sizes of the objects of checked images, without crowds, or None if there are none."""
    boxes = [(one.box[2:], position) for position, image in enumerate(images) for one in image.objects if not one.crowd]
    if not boxes:
        return None
    sides, positions = zip(*boxes, strict=True)
    shapes = np.array([(image.height, image.width) for image in images], dtype=np.int64)
    return ObjectSizes(np.array(sides, dtype=np.float64), np.array(positions, dtype=np.int64), shapes)


def statistics_lines(images: Sequence[CheckedImage], names: Mapping[int, str]) -> list[str]:
    """Return what a dataset consists of, as lines for people.

    Args:
        images: Checked images.
        names: The name of each category, by its id.
    """
    sizes = sizes_of_images(images)
    if sizes is None:
        return []
    counts, sides = sizes.counts, sizes.sides
    heights, widths = sizes.shapes.T
    small, large = int((sides < _SMALL).sum()), int((sides >= _LARGE).sum())
    ratios = sizes.boxes[:, 1] / np.maximum(sizes.boxes[:, 0], 1e-9)
    return [
        f"image sizes  {_range(widths)} wide, {_range(heights)} high (pixels)",
        f"objects/img  {_spread(counts)}",
        f"box sides    {_spread(sides)} pixels (square root of the area); {small} small (below {_SMALL}), "
        f"{len(sides) - small - large} medium, {large} large (from {_LARGE})",
        f"box shapes   height / width {_spread(ratios)}",
        *_balance(images, names),
    ]


def _range(values: np.ndarray[tuple[int, ...], np.dtype[np.int64]]) -> str:
    low, high = int(values.min()), int(values.max())
    return str(low) if low == high else f"{low} to {high}"


def _spread(values: np.ndarray[tuple[int, ...], np.dtype[np.int64] | np.dtype[np.float64]]) -> str:
    low, middle, high = (float(np.percentile(values, part)) for part in (5, 50, 95))
    return f"median {middle:.3g}, 90 % are {low:.3g} to {high:.3g}, at most {float(values.max()):.4g}"


def _balance(images: Iterable[CheckedImage], names: Mapping[int, str]) -> list[str]:
    counts = Counter(one.category_id for image in images for one in image.objects if not one.crowd)
    found = sorted(((counts[number], name) for number, name in names.items()), reverse=True)
    few = [f"{shown(name)} ({count})" for count, name in reversed(found) if 0 < count < _FEW]
    none = sum(not count for count, _ in found)
    lines = []
    most, least = found[0], found[-1]
    if least[0] and most[0] >= _UNBALANCED * least[0]:
        lines.append(
            f"balance      {shown(most[1])} has {most[0] / least[0]:.0f} times the objects of {shown(least[1])}; "
            "data.repeat_threshold shows images of rare classes more often"
        )
    if few or none:
        more = f" and {len(few) - 10} more" if len(few) > 10 else ""
        without = [f"{none} classes have none"] if none else []
        listed = [f"fewer than {_FEW}: {', '.join(few[:10])}{more}"] if few else []
        lines.append(f"few objects  {'; '.join([*listed, *without])}")
    return lines
