"""Keypoints: read from COCO JSON, and moved together with their image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from vovnet.detection.data.fields import is_number

Points = npt.NDArray[np.float32]
"""(K, 3): x, y in pixels and the visibility: 0 not labelled, 1 labelled but hidden, 2 visible."""


def read_keypoints(value: Any, count: int, size: tuple[int, int], tolerance: float) -> tuple[Points | None, list[str]]:
    """Read an annotation's ``keypoints``.

    Args:
        value: The field: x, y, v of each keypoint, one after the other; None or an empty list if it has none.
        count: The number of keypoints of the category.
        size: Width and height of the image in pixels.
        tolerance: A labelled point may be outside of the image by this many pixels; it is moved to the border.

    Returns:
        The points, or None without a sound field; and the kinds of problems, of
        :data:`vovnet.detection.data.report.KINDS`. Points of unknown visibility or outside of the image are unlabelled.
    """
    if value in (None, []):
        return None, []
    if not isinstance(value, list | tuple) or len(value) != 3 * count or not all(map(is_number, value)):
        return None, ["bad_keypoints"]
    try:
        points = np.array(value, dtype=np.float64).reshape(count, 3)
    except OverflowError:  # an integer of hundreds of digits
        return None, ["bad_keypoints"]
    if not np.isfinite(points).all():
        return None, ["bad_keypoints"]
    unknown = ~np.isin(points[:, 2], (0, 1, 2))
    far = ((points[:, :2] < -tolerance) | (points[:, :2] > np.array(size) + tolerance)).any(axis=1)
    outside = far & (points[:, 2] > 0) & ~unknown
    problems = [kind for kind, rows in (("bad_visibility", unknown), ("keypoint_outside", outside)) if rows.any()]
    points[:, :2] = points[:, :2].clip(0, size)
    points[unknown | outside | (points[:, 2] == 0)] = 0
    return points.astype(np.float32), problems


class Keypoints(tv_tensors.TVTensor):
    """The keypoints of N objects, float32 (N, K, 3): x, y in pixels and the visibility of each (0, 1 or 2).

    torchvision's geometric transforms (v2) move them. In a mirror image, keypoints of the left and of the right take
    each other's places. x becomes width - x, as for boxes and in torchvision's references; its own
    ``tv_tensors.KeyPoints`` become width - 1 - x, as pixels do.

    Attributes:
        canvas_size: Height and width of the image.
        mirror: For each keypoint the one whose place it takes in a mirror image.
    """

    canvas_size: tuple[int, int]
    mirror: tuple[int, ...]

    @staticmethod
    def of(data: Tensor, canvas_size: tuple[int, int], mirror: Sequence[int]) -> Keypoints:
        """Return a tensor (N, K, 3) as keypoints."""
        found = data.as_subclass(Keypoints)
        found.canvas_size, found.mirror = canvas_size, tuple(mirror)
        return found

    def like(self, data: Tensor, canvas_size: tuple[int, int] | None = None) -> Keypoints:
        """Return another tensor as keypoints with the attributes of these."""
        return Keypoints.of(data, canvas_size or self.canvas_size, self.mirror)

    def inside(self) -> Keypoints:
        """Return a copy in which points outside of the image are not labelled; those are 0, 0, 0."""
        points = self.as_subclass(Tensor).clone()
        height, width = self.canvas_size
        x, y, v = points.unbind(-1)
        points[~((v > 0) & (x >= 0) & (x <= width) & (y >= 0) & (y <= height))] = 0
        return self.like(points)

    @classmethod
    def wrap(cls, tensor: Tensor, like: tv_tensors.TVTensor, **kwargs: Any) -> Keypoints:
        """Return a tensor as keypoints, for ``tv_tensors.wrap``; older torchvisions do not call it."""
        assert isinstance(like, Keypoints)
        return like.like(tensor, **kwargs)

    @classmethod
    def _wrap_output(cls, output: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        like = next((one for one in args if isinstance(one, Keypoints)), None)
        return like.like(output) if isinstance(output, Tensor) and like is not None else output


@functional.register_kernel(functional.horizontal_flip, Keypoints)
def _flipped(points: Keypoints) -> Keypoints:
    return _mirrored(points, 0, points.canvas_size[1])


@functional.register_kernel(functional.vertical_flip, Keypoints)
def _vertically_flipped(points: Keypoints) -> Keypoints:
    # A left hand is a right hand in any mirror.
    return _mirrored(points, 1, points.canvas_size[0])


def _mirrored(points: Keypoints, axis: int, length: int) -> Keypoints:
    plain = points.as_subclass(Tensor)[:, list(points.mirror)]
    plain[..., axis] = length - plain[..., axis]
    return points.like(plain)


@functional.register_kernel(functional.resize, Keypoints)
def _resized(points: Keypoints, size: list[int], *args: Any, **kwargs: Any) -> Keypoints:
    # torchvision computes the new size, which may be given as a short side.
    corner = tv_tensors.BoundingBoxes(torch.zeros(1, 4), format="XYXY", canvas_size=points.canvas_size)
    resized: Any = functional.resize(corner, size, *args, **kwargs)
    height, width = resized.canvas_size
    factors = torch.tensor([width / points.canvas_size[1], height / points.canvas_size[0], 1.0])
    return points.like(points.as_subclass(Tensor) * factors, (height, width))


@functional.register_kernel(functional.crop, Keypoints)
def _cropped(points: Keypoints, top: int, left: int, height: int, width: int) -> Keypoints:
    return points.like(points.as_subclass(Tensor) - torch.tensor([left, top, 0.0]), (height, width))


def _register(transform: Callable[..., Any]) -> None:
    """Let torchvision's kernel for its own ``KeyPoints`` move ours, too."""

    def kernel(points: Keypoints, *args: Any, **kwargs: Any) -> Keypoints:
        plain = points.as_subclass(Tensor)
        moved = transform(tv_tensors.KeyPoints(plain[..., :2], canvas_size=points.canvas_size), *args, **kwargs)
        places = moved.as_subclass(Tensor)
        return points.like(torch.cat((places, plain[..., 2:]), dim=-1), tuple(moved.canvas_size))

    functional.register_kernel(transform, Keypoints)(kernel)


for _transform in (
    functional.pad,
    functional.affine,
    functional.rotate,
    functional.perspective,
    functional.elastic,
    functional.resized_crop,
    functional.center_crop,
):
    _register(_transform)
