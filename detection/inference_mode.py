"""Run a detector: evaluation mode, its input, and its output in COCO's terms. Evaluation and prediction share it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import box_convert

from vovnet.detection.masks import encode_box_masks, encode_masks
from vovnet.errors import InputError
from vovnet.processes.devices import choose_device
from vovnet.results.detections import ImageDetections, checked_detections
from vovnet.results.limits import MEDIAN_OBJECT, TRAINED_CROP, Limits, check_shape, trained_factor

BoxConverter = Callable[[Tensor], Tensor]
"""Converts a detector's boxes (N, 4) to COCO's x, y, width, height (N, 4)."""

corners_to_xywh: BoxConverter = partial(box_convert, in_fmt="xyxy", out_fmt="xywh")
"""The converter for torchvision's boxes."""


_SINGLE_VALUE = "Expected more than 1 value per channel"


@contextmanager
def inference(detector: nn.Module, device: str | torch.device | None) -> Iterator[torch.device]:
    """Put a detector in evaluation mode on a device, without gradients, for the length of a ``with`` block.

    Afterwards the detector is on its own device again, and each of its modules in the mode that it had.

    Raises:
        InputError: its weights are not float32, or are on the meta device; or, in the block, an image is so small that
            a norm has nothing to compute a mean of.
    """
    parameter = next(detector.parameters())
    home = parameter.device
    check_number_type("the detector's weights are", parameter.dtype, "call detector.float()")
    # torch.get_default_device() fails in PyTorch 2.8 after torch.set_default_device(None).
    if "meta" in (home.type, torch.empty(0).device.type):
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
    except ValueError as error:
        # The only way to know: torch.nn.functional.group_norm has no type of its own for it.
        if not str(error).startswith(_SINGLE_VALUE):
            raise
        raise InputError(
            "image: too small for this detector, a group of whose norms gets a single value (model.head_norm, "
            "model.fpn_norm, model.norm); resize images to a larger size (model.min_size in config.json)"
        ) from error
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


def check_size(detector: nn.Module, height: int, width: int, name: str) -> None:
    """Refuse an image that would have no pixels after the detector's resize, which rounds down.

    Raises:
        InputError: the image is empty or too narrow; the message begins with ``name``.
    """
    check_shape(height, width, getattr(getattr(detector, "transform", None), "max_size", None), name)


def detection_limit(detector: nn.Module) -> int | None:
    """Return the largest number of detections in an image, or None if the detector does not say."""
    for part in (getattr(detector, "roi_heads", None), detector):
        limit = getattr(part, "detections_per_img", None)
        if isinstance(limit, int):
            return limit
    return None


def limits_of(detector: nn.Module, median_object: float | None = None) -> Limits:
    """Return the limits of a detector.

    Args:
        detector: a torchvision detector.
        median_object: the median side in pixels of the objects of the data at hand. The training data's comes first;
            ``config.json`` of the detector holds it if :func:`vovnet.detection.train` wrote it.
    """
    preprocessing: Any = getattr(detector, "preprocessing", None) or {}
    sizes: Any = getattr(detector, "transform", None)
    min_size = getattr(sizes, "min_size", None)
    return Limits(
        detections=detection_limit(detector),
        min_size=min_size[-1] if min_size else None,
        max_size=getattr(sizes, "max_size", None),
        median_object=preprocessing.get(MEDIAN_OBJECT, median_object),
        trained_factor=trained_factor(preprocessing),
        crop=preprocessing.get(TRAINED_CROP),
        built_in=hasattr(detector, "exported"),
    )


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
            (N, 1, H, W) probabilities, or the ``box_masks`` of :func:`vovnet.detection.masks.detect`; optional
            ``keypoints`` (N, P, 3), of which x, y are used, with ``keypoints_scores`` (N, P), peaks of heat maps, whose
            sigmoid is the score.
        image_id: COCO's id of the image.
        size: height and width of the image.
        category_ids: label k becomes ``category_ids[k - 1]``.
        to_xywh: the detector's :func:`box_converter`.

    Raises:
        InputError: a label is outside 1..K, or a box or score is not finite.
    """
    boxes = output["boxes"].detach().float().cpu()
    scores = output["scores"].detach().float().cpu().numpy()
    labels = output["labels"].detach().cpu().numpy().astype(np.int64)
    found = checked_detections(image_id, to_xywh(boxes).numpy(), scores, labels, category_ids, size)
    found.masks = _encoded(output, size)
    found.keypoints = _keypoints(output, image_id)
    return found


def _keypoints(output: Mapping[str, Tensor], image_id: int) -> NDArray[np.float32] | None:
    if "keypoints" not in output:
        return None
    places = output["keypoints"].detach().float().cpu()[..., :2]
    scores = output["keypoints_scores"].detach().float().cpu().sigmoid()
    points = torch.cat((places, scores.reshape(*places.shape[:-1], 1)), dim=-1).numpy()
    if not np.isfinite(points).all():
        raise InputError(f"image {image_id}: the detector returned keypoints that are not finite")
    return points


def _encoded(output: Mapping[str, Tensor], size: tuple[int, int]) -> list[bytes] | None:
    if "box_masks" in output:
        return encode_box_masks(output["box_masks"], output["boxes"], size)
    return encode_masks(output["masks"]) if "masks" in output else None
