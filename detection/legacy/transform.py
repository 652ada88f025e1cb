"""Images as the network's input (Pillow's resize, BGR in 0..255), and detections in the image's pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import paste_masks_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from vovnet.detection.data.pixels import as_bytes
from vovnet.detection.legacy.boxes import resize_boxes
from vovnet.images.tensors import to_tensor

PIXEL_MEAN_BGR = (102.9801, 115.9465, 122.7717)
"""Mean of blue, green and red in 0..255. Reference config/defaults.py:51-55."""


def resized_size(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """Return height and width in pixels after the resize. Reference data/transforms/transforms.py:35-55.

    The short side becomes ``min_size``, or, if the long side would be longer than ``max_size``, the length that brings
    the long side closest to it. The long side is truncated. torchvision multiplies both sides by one factor and
    truncates both (models/detection/transform.py:58-72).
    """
    short, long = min(height, width), max(height, width)
    target = min_size
    if long / short * min_size > max_size:
        target = max(1, round(max_size * short / long))
    if short == target:
        return height, width
    if width < height:
        return int(target * height / width), target
    return target, int(target * width / height)


def resize_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 (3, H, W) to ``size`` (height, width) with Pillow's bilinear filter, which averages when it shrinks.

    Reference data/transforms/transforms.py:57-61; torchvision scales floats without such averaging
    (models/detection/transform.py:65-72).
    """
    if tuple(image.shape[-2:]) == size:
        return image
    pil_image = Image.fromarray(image.permute(1, 2, 0).cpu().contiguous().numpy())
    return to_tensor(pil_image.resize((size[1], size[0]), Image.Resampling.BILINEAR)).to(image.device)


class LegacyTransform(GeneralizedRCNNTransform):
    """Converts RGB images in [0, 1] to BGR in 0..255 minus the mean, and resizes detections back.

    In training, images and targets are resized before (``vovnet.detection.legacy.data``). Reference
    data/transforms/build.py:36-45, transforms.py:115-118, structures/image_list.py:49-68.
    """

    pastes_as_torchvision = True
    """:func:`vovnet.detection.masks.detect` may paste the masks itself, because the arithmetic is torchvision's."""

    def __init__(self, min_size: int, max_size: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__(min_size, max_size, list(mean), list(std))

    def forward(
        self, images: list[Tensor], targets: list[dict[str, Any]] | None = None
    ) -> tuple[ImageList, list[dict[str, Any]] | None]:
        """Return images (3, H, W) of different sizes as one padded batch, with their sizes without padding."""
        inputs = [self.normalize(image if self.training else self._resized(image)) for image in images]
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in inputs]
        return ImageList(self.batch_images(inputs, size_divisible=self.size_divisible), sizes), targets

    def normalize(self, image: Tensor) -> Tensor:
        """Convert RGB in [0, 1] to BGR in 0..255, subtract the mean and divide by the deviation (which is 1)."""
        if not image.is_floating_point():
            raise TypeError(f"expected images as floats in [0, 1], got {image.dtype}")
        mean = image.new_tensor(self.image_mean)[:, None, None]
        std = image.new_tensor(self.image_std)[:, None, None]
        return (image.flip(0) * 255 - mean) / std

    def _resized(self, image: Tensor) -> Tensor:
        pixels = as_bytes(image)  # exact for 8-bit images
        height, width = image.shape[-2:]
        short_sides: Any = self.min_size
        size = resized_size(height, width, short_sides[-1], self.max_size)
        return resize_image(pixels, size).to(image.dtype) / 255

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Convert boxes, which stay inclusive, to the given images' pixels, and paste masks there (N, 1, H, W).

        Boxes first, then masks: reference data/datasets/evaluation/coco/coco_eval.py:104-155. torchvision's pasting is
        the reference's own (modeling/roi_heads/mask_head/inference.py:91-159).
        """
        if self.training:
            return result
        for found, resized, original in zip(result, image_shapes, original_image_sizes, strict=True):
            found["boxes"] = resize_boxes(found["boxes"], resized, original)
            if "masks" in found:
                found["masks"] = paste_masks_in_image(found["masks"], found["boxes"], original)
        return result
