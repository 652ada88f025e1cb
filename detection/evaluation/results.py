"""Detections as arrays, and as the dictionaries of COCO's results format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vovnet.errors import InputError

MASK_THRESHOLD = 0.5
"""A pixel belongs to an object where the mask's probability is above this, as in torchvision's references."""


@dataclass
class ImageDetections:
    """The detections of one image in the order in which the detector gave them (N of them)."""

    image_id: int
    boxes: NDArray[np.float32]
    """(N, 4): x, y, width, height in pixels."""
    scores: NDArray[np.float32]
    """(N,)"""
    category_ids: NDArray[np.int64]
    """(N,): the categories' own ids, not labels."""
    masks: list[bytes] | None = None
    """Compressed RLE counts of each detection; None from a detector without masks."""
    size: tuple[int, int] = (0, 0)
    """Height and width of the image, which an RLE repeats."""

    def results(self, iou_type: str) -> Iterator[dict[str, Any]]:
        """Dictionaries of COCO's results format: for ``bbox`` with boxes, for ``segm`` with RLE (text counts)."""
        scores, categories = self.scores.tolist(), self.category_ids.tolist()
        if iou_type == "bbox":
            for category, box, score in zip(categories, self.boxes.tolist(), scores, strict=True):
                yield {"image_id": self.image_id, "category_id": category, "bbox": box, "score": score}
            return
        size = list(self.size)
        for category, counts, score in zip(categories, self.masks or [], scores, strict=True):
            segmentation = {"size": size, "counts": counts.decode("ascii")}
            yield {"image_id": self.image_id, "category_id": category, "segmentation": segmentation, "score": score}


BoxForm = Callable[[Tensor], Tensor]
"""From a detector's boxes (N, 4) to COCO's x, y, width, height (N, 4)."""


def corners_to_xywh(boxes: Tensor) -> Tensor:
    """torchvision's XYXY boxes (N, 4) as COCO's."""
    # Subtracted in float32, as torchvision's references do, so that results agree to the last bit.
    return torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), dim=1)


def box_form(detector: nn.Module) -> BoxForm:
    """How a detector's boxes become COCO's: its own ``boxes_to_xywh``, else torchvision's XYXY is understood."""
    own: Any = getattr(detector, "boxes_to_xywh", corners_to_xywh)
    return own


def image_detections(
    output: Mapping[str, Tensor],
    image_id: int,
    size: tuple[int, int],
    category_ids: Sequence[int],
    to_xywh: BoxForm = corners_to_xywh,
) -> ImageDetections:
    """Convert what a torchvision detector returned for one image.

    Args:
        output: ``boxes`` (N, 4) XYXY pixels, ``labels`` (N,) from 1, ``scores`` (N,), optional ``masks``
            (N, 1, H, W) probabilities.
        image_id: COCO's id of the image.
        size: height and width of the image.
        category_ids: label k becomes ``category_ids[k - 1]``.
        to_xywh: what :func:`box_form` gives for the detector.

    Raises:
        InputError: a label outside 1..K or a box or score that is not finite.
    """
    boxes = output["boxes"].detach().float().cpu()
    scores = output["scores"].detach().float().cpu()
    labels = output["labels"].detach().cpu().numpy().astype(np.int64)
    if not (torch.isfinite(boxes).all() and torch.isfinite(scores).all()):
        raise InputError(f"image {image_id}: the detector returned boxes or scores that are not finite")
    if labels.size and (labels.min() < 1 or labels.max() > len(category_ids)):
        raise InputError(
            f"image {image_id}: the detector returned label {labels[(labels < 1) | (labels > len(category_ids))][0]}, "
            f"but there are {len(category_ids)} categories; is it a detector of other data?"
        )
    ids = np.asarray(category_ids, dtype=np.int64)
    return ImageDetections(
        image_id=image_id,
        boxes=to_xywh(boxes).numpy(),
        scores=scores.numpy(),
        category_ids=ids[labels - 1],
        masks=encode_masks(output["masks"]) if "masks" in output else None,
        size=size,
    )


def encode_masks(masks: Tensor) -> list[bytes]:
    """Compressed RLE counts of masks.

    Args:
        masks: (N, 1, H, W) or (N, H, W): probabilities, of which those above 0.5 count, or bool or uint8.
    """
    from pycocotools import mask as coco_mask

    if masks.ndim == 4:
        masks = masks[:, 0]
    binary = masks > MASK_THRESHOLD if masks.is_floating_point() else masks != 0
    # pycocotools wants (H, W, N) in Fortran order, which in memory is (N, W, H) in C order.
    columns = binary.detach().to(torch.uint8).transpose(1, 2).contiguous().cpu().numpy()
    return [rle["counts"] for rle in coco_mask.encode(columns.transpose(2, 1, 0))]
