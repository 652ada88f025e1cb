"""Run a Mask R-CNN without pasting all its masks at once, and paste and encode each mask inside its box.

torchvision pastes the masks of all N detections into (N, 1, H, W) probabilities: 4.8 GB for 100 detections in an image
of 4000×3000 pixels. What the mask head returns, (N, 1, 28, 28), is small.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.roi_heads import RoIHeads, expand_boxes, expand_masks
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from vovnet.detection.masks.rle import to_bits
from vovnet.results.rle import encode_part

BOX_MASKS = "box_masks"
"""The key of masks (N, 1, M, M), probabilities on a grid over each box."""


def detect(detector: nn.Module, images: list[Tensor]) -> list[dict[str, Tensor]]:
    """Call a detector in evaluation mode. Its masks are not pasted, if they would be as torchvision does it.

    Returns:
        What the detector returns for each image, but with ``box_masks`` (N, 1, M, M) in place of ``masks``
        (N, 1, H, W). A detector with a ``forward`` or a pasting of its own keeps its ``masks``. Detections of class 0,
        the background, are left out: RetinaNet and FCOS have an output for it that no object trains.
    """
    unpasted: Callable[[list[Tensor]], list[dict[str, Tensor]]] | None = getattr(detector, "unpasted", None)
    if unpasted is not None:  # an exported file
        return unpasted(images)
    if isinstance(detector, RetinaNet | FCOS):
        return [_without_background(found) for found in detector(images)]
    if not _pastes_as_torchvision(detector):
        return detector(images)
    heads: Any = detector.roi_heads
    caller = threading.get_ident()
    taken: list[Tensor | None] = []

    def take(module: nn.Module, inputs: Any, outputs: tuple[list[dict[str, Tensor]], object]) -> None:
        if threading.get_ident() == caller:  # another thread that uses the detector gets its masks
            taken.extend(found.pop("masks", None) for found in outputs[0])

    hook = heads.register_forward_hook(take)
    try:
        outputs: list[dict[str, Tensor]] = detector(images)
    finally:
        hook.remove()
    for found, masks in zip(outputs, taken, strict=True):
        if masks is not None:
            found[BOX_MASKS] = masks
    return outputs


def _without_background(found: dict[str, Tensor]) -> dict[str, Tensor]:
    objects = found["labels"] > 0
    return {name: value[objects] for name, value in found.items()}


def _pastes_as_torchvision(detector: nn.Module) -> bool:
    transform = getattr(detector, "transform", None)
    if not isinstance(detector, GeneralizedRCNN) or not isinstance(detector.roi_heads, RoIHeads):
        return False
    own_forward = type(detector).forward is not GeneralizedRCNN.forward or "forward" in vars(detector)
    known = type(transform).postprocess is GeneralizedRCNNTransform.postprocess  # type: ignore[union-attr]
    return not own_forward and (known or getattr(transform, "pastes_as_torchvision", False))


def encode_box_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[bytes]:
    """Return the compressed RLE counts of masks, equal to those of torchvision's ``paste_masks_in_image`` above 0.5.

    Args:
        masks: (N, 1, M, M) probabilities on a grid over each box.
        boxes: (N, 4) XYXY pixels.
        size: height and width of the image.
    """
    return [encode_part(to_bits(part), corner, size) for part, corner in _pasted_parts(masks, boxes, size)]


def _pasted_parts(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """Yield each mask's probabilities inside the image and its box, with the row and column of the first pixel.

    torchvision models/detection/roi_heads.py, ``paste_masks_in_image`` and ``paste_mask_in_image``.
    """
    height, width = size
    padded, scale = expand_masks(masks, padding=1)
    for mask, (x0, y0, x1, y1) in zip(padded, expand_boxes(boxes, scale).to(torch.int64).tolist(), strict=True):
        shape = (max(y1 - y0 + 1, 1), max(x1 - x0 + 1, 1))
        part = F.interpolate(mask[None], size=shape, mode="bilinear", align_corners=False)[0, 0]
        left, right = max(x0, 0), min(x1 + 1, width)
        top, bottom = max(y0, 0), min(y1 + 1, height)
        inside = part[top - y0 : max(bottom, top) - y0, left - x0 : max(right, left) - x0]
        yield inside, (top, left)
