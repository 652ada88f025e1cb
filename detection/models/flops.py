"""Count the multiply-adds of a network without computing anything."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

M = TypeVar("M", bound=nn.Module)

PROPOSALS, MASKS = 1000, 100
"""The most proposals, and boxes with masks or keypoints, of an image in the published detectors; torchvision counts
with the same numbers."""

_DEFAULT_INPUT = (3, 224, 224)


def multiply_adds(model: nn.Module, *shapes: tuple[int, ...]) -> int:
    """Count the multiply-adds of one forward pass in evaluation mode.

    Convolutions, matrix products and attention are counted. Norms, activations, sums and pooling are not, as in the
    tables of papers, timm and torchvision. The pass runs on the meta device and takes no memory.

    Args:
        model: the model; it is not changed.
        *shapes: shapes of its inputs, which are float tensors.
    """
    empty = _on_meta(model)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        empty(*(_empty(*shape) for shape in shapes))
    return _multiply_adds(counter)


def classifier_gmacs(model: nn.Module) -> float:
    """Return the multiply-adds (10⁹) of a timm model, with or without ``features_only``, for one image.

    The image has the size in timm's ``pretrained_cfg``, or 224×224 without one.
    """
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = cfg.get("input_size") or _DEFAULT_INPUT
    kernel = next((parameter for parameter in model.parameters() if parameter.ndim == 4), None)
    if kernel is not None:  # in_chans does not change timm's pretrained_cfg
        channels = kernel.shape[1]
    return multiply_adds(model, (1, channels, height, width)) / 1e9


def working_size(detector: nn.Module) -> tuple[int, int]:
    """Return height and width in pixels of the largest wide image that reaches a torchvision detector's backbone.

    These are the sides that the detector scales images to, padded to a multiple of its ``size_divisible``: 800×1344 for
    torchvision's 800 and 1333.
    """
    transform: Any = detector.transform
    sides = transform.fixed_size or (transform.max_size, transform.min_size[-1])  # width and height
    step = transform.size_divisible
    width, height = (-(-side // step) * step for side in sides)
    return height, width


def detector_gmacs(detector: nn.Module, size: tuple[int, int] | None = None) -> float:
    """Return the multiply-adds (10⁹) of a torchvision detector for one image.

    This counts the backbone and its pyramid, the RPN's head on every level, the box head and predictor on 1000
    proposals, and the mask or keypoint head and predictor, if there are any, on 100 boxes, with any score thresholds.
    Of a ``RetinaNet`` or ``FCOS`` it counts the backbone, its pyramid, and the head on every level.

    Args:
        detector: the detector; it is not changed.
        size: height and width in pixels of the backbone's input, that is, of the resized and padded image. None is
            the size that the detector works at (:func:`working_size`).
    """
    empty: Any = _on_meta(detector)
    backbone = empty.backbone
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        features = backbone(_empty(1, getattr(backbone, "in_chans", 3), *(size or working_size(detector))))
        if hasattr(empty, "roi_heads"):
            empty.rpn.head([*features.values()])
            _run_heads(empty.roi_heads, backbone)
        else:
            empty.head([*features.values()])
    return _multiply_adds(counter) / 1e9


def _run_heads(heads: Any, backbone: Any) -> None:
    heads.box_predictor(heads.box_head(_pooled(PROPOSALS, backbone, heads.box_roi_pool)))
    if heads.has_mask():
        heads.mask_predictor(heads.mask_head(_pooled(MASKS, backbone, heads.mask_roi_pool)))
    if heads.has_keypoint():
        heads.keypoint_predictor(heads.keypoint_head(_pooled(MASKS, backbone, heads.keypoint_roi_pool)))


def _pooled(boxes: int, backbone: Any, pool: Any) -> Tensor:
    return _empty(boxes, backbone.out_channels, *pool.output_size)


def _multiply_adds(counter: FlopCounterMode) -> int:
    return counter.get_total_flops() // 2  # torch counts multiplications and additions


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def _on_meta(model: M) -> M:
    """Return a copy in evaluation mode with parameters and buffers on the meta device."""
    twins: dict[int, Any] = {}
    for parameter in model.parameters():
        twins[id(parameter)] = nn.Parameter(_like(parameter), requires_grad=False)
    for buffer in model.buffers():
        twins[id(buffer)] = _like(buffer)
    return copy.deepcopy(model, twins).eval()  # deepcopy uses a copy that its memo already has


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta", dtype=torch.float32 if tensor.is_floating_point() else tensor.dtype)
