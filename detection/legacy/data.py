"""The reference's training data: inclusive boxes, polygons, its choice of images, Pillow's resize."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vovnet.detection.config.data import DataRecipe
from vovnet.detection.config.sources import DataSource
from vovnet.detection.data import fields
from vovnet.detection.data.annotations import AnnotationFile
from vovnet.detection.data.checked_images import CheckedImage
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.data.masks import decode_masks
from vovnet.detection.data.pixels import as_bytes
from vovnet.detection.data.protocol import Target
from vovnet.detection.data.validation import check_content
from vovnet.detection.legacy.masks import Polygons
from vovnet.detection.legacy.transform import resize_image, resized_size
from vovnet.errors import InputError
from vovnet.images.folder import ImageFolder

NO_SHAPE = ("no_mask", "bad_rle", "rle_size", "rle_sum")
"""Problems (of :data:`vovnet.detection.data.report.KINDS`) after which an object has no mask."""


class LegacyCocoDataset(CocoDataset):
    """COCO JSON files as the reference trains on them. Arguments and errors are those of :class:`CocoDataset`.

    Images are sorted by id within each source. Images without any annotation wider and higher than a pixel (a crowd
    counts) are left out: reference data/datasets/coco.py:17-56. Objects that have no width or height after the
    conversion to inclusive boxes are removed from every part of the target: coco.py:68-99. Objects whose mask covers no
    pixel, or whose polygons have too few points, are kept; :class:`CocoDataset` leaves them out. An image may have no
    objects left.

    Targets have no ``masks``. In addition to the other keys of :class:`CocoDataset` they have

    - ``corners``: float32 (N, 4), inclusive x0, y0, x1, y1 in pixels (``boxes`` are torchvision's);
    - ``polygons``, with ``masks=True``: :class:`vovnet.detection.legacy.masks.Polygons` of the N objects.
    """

    def __init__(
        self,
        sources: Sequence[DataSource],
        *,
        masks: bool,
        training: bool = True,
        keep_empty: bool = True,
        channels: int = 3,
        max_pixels: int | None = None,
        keypoints: bool = False,
        min_keypoints: int = 0,
        categories: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        if not training:
            raise InputError("LegacyCocoDataset: training=False: evaluation needs every image; use CocoDataset")
        if keypoints or min_keypoints:
            raise InputError("LegacyCocoDataset: keypoints: the reference has no detector of them; use CocoDataset")
        self._left_out = [0, 0]
        super().__init__(
            sources,
            masks=masks,
            training=True,
            keep_empty=keep_empty,
            channels=channels,
            max_pixels=max_pixels,
            categories=categories,
        )

    @property
    def dropped_summary(self) -> str:
        """Return one line on what was left out at the start; empty if nothing was."""
        images, objects = self._left_out
        parts = [
            super().dropped_summary,
            f"{images} images without an annotation over a pixel wide and high" if images else "",
            f"{objects} objects at most a pixel wide or high" if objects else "",
        ]
        return "; ".join(filter(None, parts))

    def _usable(self, content: AnnotationFile, folder: ImageFolder, masks: bool) -> list[CheckedImage]:
        report = self.dropped
        before = {kind: len(report.problems.get(kind, ())) for kind in NO_SHAPE}
        # evaluation=True, because the reference keeps masks that cover no pixel.
        found = check_content(content, folder, masks, report, evaluation=True)
        shapeless = {number for kind in NO_SHAPE for number in report.problems.get(kind, [])[before[kind] :]}
        wanted = {fields.whole_number(one["image_id"]) for one in content.annotations if _over_a_pixel(one)}
        images = sorted((image for image in found if image.image_id in wanted), key=lambda image: image.image_id)
        self._left_out[0] += len(found) - len(images)
        objects = [(image, one) for image in images for one in image.objects]
        corners = inclusive_corners(
            np.array([one.box for _, one in objects]), np.array([(image.height, image.width) for image, _ in objects])
        )
        for image in images:
            image.objects = []
        for (image, one), solid in zip(objects, _solid(corners), strict=True):
            if not one.crowd and one.segmentation is None and one.annotation_id in shapeless:
                report.dropped_annotations += 1
            elif one.crowd or solid:
                image.objects.append(one)
            else:
                self._left_out[1] += 1
        return images

    def _extras(self, index: int) -> Target:
        height, width = self.image_size(index)
        boxes = self._boxes[self._starts[index] : self._starts[index + 1]]
        extras: Target = {"corners": torch.from_numpy(inclusive_corners(boxes, self._sizes[index]))}
        if self.masks:
            extras["polygons"] = Polygons(
                decode_masks([shape], height, width)[0].numpy() if isinstance(shape, dict) else shape or []
                for shape in self._segmentations(index)
            )
        return extras


def inclusive_corners(boxes: npt.NDArray[Any], sizes: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the reference's boxes in float32: x1 = x0 + max(w - 1, 0), clipped to the image's last pixel.

    Reference structures/bounding_box.py:55-89, 214-224. torchvision has x1 = x0 + w, clipped to the width.

    Args:
        boxes: (N, 4), x, y, width, height in pixels.
        sizes: (N, 2) or (2,), the height and width of each box's image, or of the image of all boxes.
    """
    x, y, width, height = boxes.reshape(-1, 4).astype(np.float32).T
    one = np.float32(1)
    corners = np.stack((x, y, x + np.maximum(width - one, 0), y + np.maximum(height - one, 0)), axis=1)
    last = sizes.reshape(-1, 2)[:, [1, 0, 1, 0]].astype(np.float32) - one
    return np.clip(corners, np.float32(0), last)


def _solid(corners: Any) -> Any:
    """Return for each box of an array or tensor (N, 4) whether it has a width and a height."""
    return (corners[:, 2] > corners[:, 0]) & (corners[:, 3] > corners[:, 1])


def _over_a_pixel(entry: Any) -> bool:
    """True if an annotation of the file has the id of an image and a box that is wider and higher than a pixel."""
    if not isinstance(entry, dict) or fields.whole_number(entry.get("image_id")) is None:
        return False
    box = fields.box(entry.get("bbox"))
    return box is not None and min(box[2:]) > 1


def legacy_train_transforms(data: DataRecipe) -> Callable[[Tensor, Target], tuple[Tensor, Target]]:
    """Return the reference's training transforms: a resize to a random size, then a random flip.

    The result takes a sample of any dataset of :mod:`vovnet.detection.data`. It returns the image uint8 (3, H, W) and a
    target with ``boxes``, float32 (N, 4) inclusive, ``labels``, ``image_id`` and, if there are polygons or masks,
    ``polygons``.

    Raises:
        InputError: The recipe has a transform that the reference does not have.
    """
    for key in ("vertical_flip", "scale_jitter", "colour", "mosaic", "copy_paste", "repeat_threshold", "crop"):
        if value := getattr(data, key):
            raise InputError(
                f"data.{key}: legacy conventions have no such transform; leave it out (got {value}), or set "
                "model.conventions=torchvision"
            )
    return LegacyTransforms(data.train_min_sizes, data.train_max_size, data.flip)


class LegacyTransforms:
    """Resize to a short side drawn from ``min_sizes``, then flip with a probability.

    Reference data/transforms/build.py:36-45, transforms.py:35-80; structures/bounding_box.py:91-165. Random numbers are
    torch's; the reference uses Python's, unseeded.
    """

    def __init__(self, min_sizes: Sequence[int], max_size: int, flip: float) -> None:
        self.min_sizes, self.max_size, self.flip = list(min_sizes), max_size, flip

    def __call__(self, image: Tensor, target: Target) -> tuple[Tensor, Target]:
        pixels = as_bytes(image.as_subclass(Tensor))
        height, width = pixels.shape[-2:]
        boxes, labels, polygons = _inclusive(target, height, width)
        short = self.min_sizes[int(torch.randint(len(self.min_sizes), ()))]
        size = resized_size(height, width, short, self.max_size)
        pixels = resize_image(pixels, size)
        ratio_h, ratio_w = size[0] / height, size[1] / width
        boxes = boxes * torch.tensor([ratio_w, ratio_h, ratio_w, ratio_h])
        if polygons is not None:
            polygons = polygons.resized(ratio_w, ratio_h)
        if float(torch.rand(())) < self.flip:
            pixels = pixels.flip(-1)
            boxes = torch.stack((size[1] - boxes[:, 2] - 1, boxes[:, 1], size[1] - boxes[:, 0] - 1, boxes[:, 3]), dim=1)
            polygons = None if polygons is None else polygons.flipped(size[1])
        keep = _solid(boxes)  # In float32 a sliver may lose its width; torchvision refuses such boxes.
        boxes, labels = boxes[keep], labels[keep]
        polygons = None if polygons is None else polygons[keep]
        result = {"boxes": boxes, "labels": labels, "image_id": target["image_id"]}
        return pixels, result if polygons is None else {**result, "polygons": polygons}


def _inclusive(target: Target, height: int, width: int) -> tuple[Tensor, Tensor, Polygons | None]:
    """Return inclusive boxes, labels and polygons (or bitmaps) of the target of any dataset."""
    if "corners" in target:
        return target["corners"], target["labels"], target.get("polygons")
    plain = target["boxes"].as_subclass(Tensor).float()
    sides = torch.cat((plain[:, :2], plain[:, 2:] - plain[:, :2]), dim=1)
    boxes = torch.from_numpy(inclusive_corners(sides.numpy(), np.array([height, width])))
    keep = _solid(boxes)
    if "iscrowd" in target:
        keep = keep & (target["iscrowd"] == 0)
    polygons = None
    if "masks" in target:
        bitmaps = target["masks"].as_subclass(Tensor)[keep].numpy()
        polygons = Polygons(list(bitmaps))
    return boxes[keep], target["labels"][keep], polygons
