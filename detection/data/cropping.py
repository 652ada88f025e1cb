"""Squares that are cut out of large images in training (``data.crop``), as tiles are cut in prediction.

All random numbers are torch's, so that the seed of a sample decides them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torchvision import tv_tensors

from vovnet.detection.data.keypoints import Keypoints
from vovnet.detection.data.protocol import Target
from vovnet.detection.data.samples import Sample
from vovnet.detection.data.windows import PER_OBJECT, moved
from vovnet.results.tiling import Region, Tiling

ON_OBJECT = 0.9
"""Probability that a crop shows an object that was drawn before it; the others are anywhere."""


def random_crop(sample: Sample, side: int) -> Sample:
    """Return a crop of ``side`` × ``side`` pixels at a random place; see :func:`drawn_region`.

    An image that is not larger in either direction is returned whole.
    """
    image, target = sample
    boxes = target["boxes"].as_subclass(Tensor)
    if "iscrowd" in target:
        boxes = boxes[target["iscrowd"] == 0]
    return cropped(sample, drawn_region(boxes, (int(image.shape[-2]), int(image.shape[-1])), side))


def drawn_region(boxes: Tensor, size: tuple[int, int], side: int) -> Region:
    """Draw the region of a crop.

    With probability :data:`ON_OBJECT` an object is drawn, each as likely, and then a place among those at which it is
    in the crop as a whole. Of an object that is larger than the crop in a direction, the crop shows a part that fills
    it in this direction. Otherwise, and without objects, every place is as likely.

    Args:
        boxes: (N, 4) XYXY in pixels of the image.
        size: Height and width of the image in pixels.
        side: Of the crop. In a direction in which the image is not larger, the region is as long as the image.
    """
    height, width = size
    box: list[float] | None = None
    if max(size) > side and len(boxes) and float(torch.rand(())) < ON_OBJECT:
        box = boxes[int(torch.randint(len(boxes), ()))].tolist()
    top = _start(height, side, None if box is None else (box[1], box[3]))
    left = _start(width, side, None if box is None else (box[0], box[2]))
    return Region(top, left, min(top + side, height), min(left + side, width))


def _start(length: int, side: int, shown: tuple[float, float] | None) -> int:
    """Draw where a crop begins in one direction, so that it has what lies between two places if there is room."""
    last = max(0, length - side)
    low, high = 0, last
    if shown is not None:
        ends = sorted((math.ceil(shown[1]) - side, math.floor(shown[0])))
        low, high = (min(max(end, 0), last) for end in ends)
    return low + (int(torch.randint(high - low + 1, ())) if high > low else 0)


def cropped(sample: Sample, region: Region) -> Sample:
    """Return a region of an image with the objects in it.

    Objects are cut, moved and left out by the rules of :func:`~vovnet.detection.data.windows.moved`; if the region is
    the whole image, all are kept as they are.
    """
    image, target = sample
    size = (int(image.shape[-2]), int(image.shape[-1]))
    if region.size == size:
        return image, _with_drawn_masks(target, size)
    top, left, bottom, right = region
    pixels = image.as_subclass(Tensor)[:, top:bottom, left:right].clone()  # the whole image can be freed
    found = moved(target, (top, left), (0, 0), region.size, region.size)
    found["boxes"] = tv_tensors.BoundingBoxes(found["boxes"], format="XYXY", canvas_size=region.size)
    if "masks" in found:
        found["masks"] = tv_tensors.Mask(found["masks"])
    if isinstance(points := target.get("keypoints"), Keypoints):
        found["keypoints"] = points.like(found["keypoints"], region.size)
    others = {key: value for key, value in target.items() if key not in (*PER_OBJECT, "encoded_masks")}
    return tv_tensors.Image(pixels), others | found


def _with_drawn_masks(target: Target, size: tuple[int, int]) -> Target:
    if "encoded_masks" not in target:
        return target
    target = dict(target)
    encoded = target.pop("encoded_masks")
    return target | {"masks": tv_tensors.Mask(encoded.drawn(range(len(encoded.shapes)), (0, 0, *size)))}


def tiles_of(sample: Sample, side: int) -> Iterator[Sample]:
    """Yield the tiles of an image with their objects, as :class:`~vovnet.results.tiling.Tiling` cuts it."""
    height, width = sample[0].shape[-2:]
    for region in Tiling(side).regions(int(height), int(width)):
        yield cropped(sample, region)
