"""Run a detector: evaluation mode, its input, and its output in COCO's terms. Evaluation and prediction share it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import box_convert

from vovnet.detection.data.object_sizes import MEDIAN_OBJECT, SMALLEST_SIDE, resize_factor
from vovnet.detection.masks import encode_box_masks, encode_masks
from vovnet.errors import InputError
from vovnet.processes.devices import choose_device

BoxConverter = Callable[[Tensor], Tensor]
"""Converts a detector's boxes (N, 4) to COCO's x, y, width, height (N, 4)."""

corners_to_xywh: BoxConverter = partial(box_convert, in_fmt="xyxy", out_fmt="xywh")
"""The converter for torchvision's boxes."""


@contextmanager
def inference(detector: nn.Module, device: str | torch.device | None) -> Iterator[torch.device]:
    """Put a detector in evaluation mode on a device, without gradients, for the length of a ``with`` block.

    Afterwards the detector is on its own device again, and each of its modules in the mode that it had.

    Raises:
        InputError: its weights are not float32, or are on the meta device.
    """
    parameter = next(detector.parameters())
    home = parameter.device
    check_number_type("the detector's weights are", parameter.dtype, "call detector.float()")
    if "meta" in (home.type, torch.get_default_device().type):
        raise InputError(
            "device: the detector or torch's default device is 'meta', which computes nothing; set another"
        )
    place = choose_device(device, home)
    modes = [(module, module.training) for module in detector.modules()]
    detector.eval()
    if place != home:
        detector.to(place)
    try:
        # Not torch.inference_mode: the anchor generator caches tensors, and a later training could not use them.
        with torch.no_grad():
            yield place
    finally:
        if place != home:
            detector.to(home)
        for module, training in modes:
            module.training = training


def check_number_type(what: str, dtype: torch.dtype, mend: str) -> None:
    """Refuse another number type than float32: NMS and RoI-Align have no kernels for some of them.

    Raises:
        InputError: the type is another one.
    """
    if dtype != torch.float32:
        raise InputError(f"{what} {dtype}: expected torch.float32; {mend} (torch.autocast computes in half precision)")


def to_input(image: Tensor, device: torch.device) -> Tensor:
    """Return an image as float32 in [0, 1] on the device, which is what a detector takes."""
    image = image.to(device, non_blocking=True)  # before the conversion: bytes are a quarter of the data
    return image if image.is_floating_point() else image.to(torch.float32) / 255


def input_channels(detector: nn.Module) -> int:
    """Return the number of channels of the images that a detector takes."""
    mean = getattr(getattr(detector, "transform", None), "image_mean", None)
    return 3 if mean is None else len(mean)


def check_shape(detector: nn.Module, height: int, width: int, name: str) -> None:
    """Refuse an image that would have no pixels after the detector's resize, which rounds down.

    Raises:
        InputError: the image is empty or too narrow; the message begins with ``name``.
    """
    if min(height, width) < 1:
        raise InputError(f"{name}: the image has no pixels ({width}x{height})")
    longest = getattr(getattr(detector, "transform", None), "max_size", None)
    if longest is not None and min(height, width) * longest < max(height, width):
        raise InputError(
            f"{name}: {width}x{height} pixels are too narrow for a detector whose longest side is {longest}; crop it"
        )


class LimitWarning(RuntimeWarning):
    """A limit of a detector cut what it found, or its resize made objects too small to be found."""


def detection_limit(detector: nn.Module) -> int | None:
    """Return the largest number of detections in an image, or None if the detector does not say."""
    for part in (getattr(detector, "roi_heads", None), detector):
        limit = getattr(part, "detections_per_img", None)
        if isinstance(limit, int):
            return limit
    return None


def warn_of_limits(
    detector: nn.Module, shapes: Sequence[tuple[int, int]], counts: Sequence[int], median_object: float | None = None
) -> None:
    """Warn once for all images whose detections or objects a limit of the detector affects.

    Args:
        detector: a torchvision detector.
        shapes: height and width of each image in pixels.
        counts: the number of detections in each image.
        median_object: the median side in pixels of the objects of the data at hand. The training data's comes first;
            ``config.json`` of the detector holds it if :func:`vovnet.detection.train` wrote it.
    """
    limit = detection_limit(detector)
    full = 0 if limit is None else sum(count >= limit for count in counts)
    if full:
        warnings.warn(
            f"{full} of {len(counts)} images reached the limit of {limit} detections, so more objects may be there: "
            "raise model.box_detections_per_img",
            LimitWarning,
            stacklevel=3,
        )
    preprocessing: Any = getattr(detector, "preprocessing", None) or {}
    median_object = preprocessing.get(MEDIAN_OBJECT, median_object)
    sizes: Any = getattr(detector, "transform", None)
    if median_object is None or not shapes or not getattr(sizes, "min_size", None):
        return
    factors = resize_factor(shapes, sizes.min_size[-1], sizes.max_size)
    small = factors[(factors < 1) & (factors * median_object < SMALLEST_SIDE)]
    if len(small):
        warnings.warn(
            f"{len(small)} of {len(shapes)} images are shrunk (model.min_size {sizes.min_size[-1]}, model.max_size "
            f"{sizes.max_size}) so that an object of the data's median size, {median_object:.3g} pixels, has only "
            f"{small.min() * median_object:.2g} pixels (below {SMALLEST_SIDE:g}); many will not be found: raise both, "
            "or cut the images into tiles",
            LimitWarning,
            stacklevel=3,
        )


@dataclass
class ImageDetections:
    """The N detections of one image, in the order in which the detector returned them."""

    image_id: int
    boxes: NDArray[np.float32]
    """(N, 4): x, y, width, height in pixels."""
    scores: NDArray[np.float32]
    """(N,)"""
    category_ids: NDArray[np.int64]
    """(N,): ids of categories, not labels."""
    masks: list[bytes] | None = None
    """Compressed RLE counts of each detection; None if the detector returns no masks."""
    size: tuple[int, int] = (0, 0)
    """Height and width of the image; each RLE contains them."""

    def results(self, iou_type: str) -> Iterator[dict[str, Any]]:
        """Yield dictionaries of COCO's results format: boxes for ``bbox``, RLE with text counts for ``segm``."""
        scores, categories = self.scores.tolist(), self.category_ids.tolist()
        if iou_type == "bbox":
            for category, box, score in zip(categories, self.boxes.tolist(), scores, strict=True):
                yield {"image_id": self.image_id, "category_id": category, "bbox": box, "score": score}
            return
        size = list(self.size)
        for category, counts, score in zip(categories, self.masks or [], scores, strict=True):
            segmentation = {"size": size, "counts": counts.decode("ascii")}
            yield {"image_id": self.image_id, "category_id": category, "segmentation": segmentation, "score": score}


def box_converter(detector: nn.Module) -> BoxConverter:
    """Return the detector's own ``boxes_to_xywh`` if it has one, otherwise the conversion of torchvision's boxes."""
    return getattr(detector, "boxes_to_xywh", corners_to_xywh)


def image_detections(
    output: Mapping[str, Tensor],
    image_id: int,
    size: tuple[int, int],
    category_ids: Sequence[int],
    to_xywh: BoxConverter = corners_to_xywh,
) -> ImageDetections:
    """Convert what a torchvision detector returned for one image.

    Args:
        output: ``boxes`` (N, 4) XYXY pixels, ``labels`` (N,) from 1, ``scores`` (N,), optional ``masks``
            (N, 1, H, W) probabilities, or the ``box_masks`` of :func:`vovnet.detection.masks.detect`.
        image_id: COCO's id of the image.
        size: height and width of the image.
        category_ids: label k becomes ``category_ids[k - 1]``.
        to_xywh: the detector's :func:`box_converter`.

    Raises:
        InputError: a label is outside 1..K, or a box or score is not finite.
    """
    boxes = output["boxes"].detach().float().cpu()
    scores = output["scores"].detach().float().cpu()
    labels = output["labels"].detach().cpu().numpy().astype(np.int64)
    if not (torch.isfinite(boxes).all() and torch.isfinite(scores).all()):
        raise InputError(f"image {image_id}: the detector returned boxes or scores that are not finite")
    if labels.size and (labels.min() < 1 or labels.max() > len(category_ids)):
        raise InputError(
            f"image {image_id}: the detector returned label {labels[(labels < 1) | (labels > len(category_ids))][0]}, "
            f"but there are {len(category_ids)} categories; was it trained on other data?"
        )
    ids = np.asarray(category_ids, dtype=np.int64)
    return ImageDetections(
        image_id=image_id,
        boxes=to_xywh(boxes).numpy(),
        scores=scores.numpy(),
        category_ids=ids[labels - 1],
        masks=_encoded(output, size),
        size=size,
    )


def _encoded(output: Mapping[str, Tensor], size: tuple[int, int]) -> list[bytes] | None:
    if "box_masks" in output:
        return encode_box_masks(output["box_masks"], output["boxes"], size)
    return encode_masks(output["masks"]) if "masks" in output else None
