"""Detect in images of any size: a batch of images at a time, or the tiles of one image after another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from vovnet.detection.inference_mode import box_converter, check_size, image_detections, to_input
from vovnet.detection.masks import detect
from vovnet.results.detections import ImageDetections
from vovnet.results.tiling import Region, Tiling, detect_in_tiles


@dataclass(frozen=True)
class Runner:
    """A detector on its device, ready to run.

    Attributes:
        detector: in evaluation mode, see :func:`vovnet.detection.inference_mode.inference`.
        device: where it is.
        category_ids: label k becomes ``category_ids[k - 1]``.
        tiling: how images are cut; None leaves them whole.
        batch_size: the largest number of tiles that are computed at a time.
    """

    detector: nn.Module
    device: torch.device
    category_ids: Sequence[int]
    tiling: Tiling | None = None
    batch_size: int = 1

    def __call__(self, images: Sequence[Tensor], names: Sequence[str], ids: Sequence[int]) -> list[ImageDetections]:
        """Return the detections of images.

        Args:
            images: pixels (C, H, W), bytes or float in [0, 1], on any device. They are computed together if they are
                not cut.
            names: what messages call them.
            ids: COCO's ids of them.

        Raises:
            InputError: an image is too narrow, or what the detector returns does not fit the categories.
        """
        tiling = self.tiling
        if tiling is None:
            return self._whole(images, names, ids)
        found = []
        for pixels, name, image_id in zip(images, names, ids, strict=True):
            size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
            run = partial(self._regions, pixels=pixels, name=name, image_id=image_id)
            found.append(detect_in_tiles(size, tiling, run, self.batch_size))
        return found

    def _regions(self, regions: Sequence[Region], pixels: Tensor, name: str, image_id: int) -> list[ImageDetections]:
        # Only these regions go to the device, and become float.
        parts = [pixels[:, one.top : one.bottom, one.left : one.right] for one in regions]
        return self._whole(parts, [name] * len(parts), [image_id] * len(parts))

    def _whole(self, images: Sequence[Tensor], names: Sequence[str], ids: Sequence[int]) -> list[ImageDetections]:
        sizes = [(int(pixels.shape[-2]), int(pixels.shape[-1])) for pixels in images]
        for name, (height, width) in zip(names, sizes, strict=True):
            check_size(self.detector, height, width, name)
        outputs = detect(self.detector, [to_input(pixels, self.device) for pixels in images])
        to_xywh = box_converter(self.detector)
        return [
            image_detections(output, one, size, self.category_ids, to_xywh)
            for output, one, size in zip(outputs, ids, sizes, strict=True)
        ]
