"""Objects in a window of an image: moved with it, cut by its border, and left out if too little of them is left."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import masks_to_boxes

from vovnet.detection.data.masks import EncodedMasks
from vovnet.detection.data.protocol import Target

PER_OBJECT = ("boxes", "labels", "masks", "keypoints", "area", "iscrowd")
"""The keys of a target whose tensors have one row per object."""
VISIBLE = 0.1
"""Least part of a box that must be left of an object that the border of a window cuts."""


def moved(
    target: Target, start: tuple[int, int], to: tuple[int, int], shown: tuple[int, int], size: tuple[int, int]
) -> Target:
    """Return the objects in a window of an image, whose corner is put at ``to`` in an image of ``size``.

    Args:
        target: The objects of the whole image; masks may be :class:`~vovnet.detection.data.masks.EncodedMasks`.
        start: Row and column of the window's corner in the image, in pixels.
        to: Row and column of that corner in the new image.
        shown: Height and width of the window.
        size: Height and width of the new image.

    Returns:
        The entries of :data:`PER_OBJECT` as plain tensors. Objects of which less than :data:`VISIBLE` of the box is
        left, or whose mask has no pixel in the window, are removed; boxes of cut objects fit their masks, if there are
        masks. Keypoints outside of the window are not labelled.
    """
    boxes = target["boxes"].as_subclass(Tensor)
    offset = torch.tensor([start[1], start[0]] * 2)
    limit = torch.tensor([shown[1], shown[0]] * 2)
    whole = boxes - offset
    clipped = whole.clamp(min=0).minimum(limit)
    sides, before = clipped[:, 2:] - clipped[:, :2], boxes[:, 2:] - boxes[:, :2]
    keep = (sides >= 1).all(dim=1) & (sides.prod(dim=1) >= VISIBLE * before.prod(dim=1))
    found = {key: target[key].as_subclass(Tensor)[keep] for key in per_object(target)}
    found["boxes"] = clipped[keep] + torch.tensor([to[1], to[0]] * 2)
    window = _mask_window(target, keep, start, shown)
    if window is not None:
        masks = window.new_zeros(len(window), *size)
        masks[:, to[0] : to[0] + shown[0], to[1] : to[1] + shown[1]] = window
        found["masks"] = masks
    if "keypoints" in found:
        found["keypoints"] = _moved_keypoints(found["keypoints"], start, to, shown)
    return refitted(found, (clipped != whole).any(dim=1)[keep])


def _mask_window(target: Target, keep: Tensor, start: tuple[int, int], shown: tuple[int, int]) -> Tensor | None:
    """Return the masks (N, height, width) of some objects in a window, or None if there are none."""
    encoded = target.get("encoded_masks")
    if isinstance(encoded, EncodedMasks):
        return encoded.drawn(keep.nonzero().flatten().tolist(), (*start, start[0] + shown[0], start[1] + shown[1]))
    if "masks" not in target:
        return None
    masks: Tensor = target["masks"].as_subclass(Tensor)
    return masks[keep][:, start[0] : start[0] + shown[0], start[1] : start[1] + shown[1]]


def _moved_keypoints(points: Tensor, start: tuple[int, int], to: tuple[int, int], shown: tuple[int, int]) -> Tensor:
    """Return keypoints (N, P, 3) of the image in the new one; those outside of the window are 0, 0, 0."""
    inside = points[..., :2] - torch.tensor([start[1], start[0]])
    limit = torch.tensor([shown[1], shown[0]])
    kept = (points[..., 2] > 0) & ((inside >= 0) & (inside <= limit)).all(dim=-1)
    placed = torch.cat((inside + torch.tensor([to[1], to[0]]), points[..., 2:]), dim=-1)
    return placed * kept[..., None]


def refitted(target: Target, changed: Tensor) -> Target:
    """Return objects with boxes that fit the masks where these were changed, without those whose masks are empty."""
    objects = {key: target[key].as_subclass(Tensor) for key in per_object(target)}
    if "masks" in objects and len(objects["boxes"]):
        keep = objects["masks"].flatten(1).any(dim=1).bool()
        objects = {key: value[keep] for key, value in objects.items()}
        changed = changed[keep]
        if changed.any():
            around = masks_to_boxes(objects["masks"][changed]) + torch.tensor([0, 0, 1, 1])
            objects["boxes"] = objects["boxes"].clone()
            objects["boxes"][changed] = around.to(objects["boxes"].dtype)
    return objects


def per_object(target: Target) -> list[str]:
    """Return the keys of a target whose tensors have one row per object."""
    return [key for key in PER_OBJECT if key in target]
