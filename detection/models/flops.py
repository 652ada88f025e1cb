"""What a network costs: multiply-adds of convolutions, matrix products and attention, counted without running it."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

M = TypeVar("M", bound=nn.Module)

CARD_SIZE = (800, 1344)
"""What most COCO images become: short side 800, long side up to 1333, padded to a multiple of 32."""
TORCHVISION_SIZE = (800, 800)
"""What torchvision counts its detectors at, in ``_ops``: a square image, with 1000 proposals and 100 masks."""
PROPOSALS, MASKS = 1000, 100
"""What the published detectors' heads see at most of one image."""

_DEFAULT_INPUT = (3, 224, 224)


def multiply_adds(model: nn.Module, *shapes: tuple[int, ...]) -> int:
    """Count the multiply-adds of one forward pass in evaluation mode.

    Counted are convolutions, matrix products and attention; norms, activations, sums and pooling are not, as in the
    tables of papers, timm and torchvision. Nothing is computed and no memory is taken: tensors have shapes alone.

    Args:
        model: stays as it is.
        *shapes: of its inputs, each a float tensor.
    """
    empty = _without_memory(model)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        empty(*(_empty(*shape) for shape in shapes))
    return _of(counter)


def classifier_gmacs(model: nn.Module) -> float:
    """Multiply-adds (10⁹) of a timm model, also of one with ``features_only``, for one image.

    The image has the size of timm's ``pretrained_cfg``, 224×224 where there is none.
    """
    cfg: Any = getattr(model, "pretrained_cfg", None) or {}
    channels, height, width = cfg.get("input_size") or _DEFAULT_INPUT
    kernel = next((parameter for parameter in model.parameters() if parameter.ndim == 4), None)
    if kernel is not None:  # timm's cfg does not follow in_chans
        channels = kernel.shape[1]
    return multiply_adds(model, (1, channels, height, width)) / 1e9


def detector_gmacs(detector: nn.Module, size: tuple[int, int] = CARD_SIZE) -> float:
    """Multiply-adds (10⁹) of a torchvision ``FasterRCNN`` or ``MaskRCNN`` for one image.

    Counted are the backbone and its pyramid, the RPN's head on every level, the box head and predictor on 1000
    proposals, and the mask head and predictor, if any, on 100 boxes, whatever the detector's thresholds let through.

    Args:
        detector: stays as it is.
        size: height and width in pixels of the image that reaches the backbone, resized and padded.
    """
    empty: Any = _without_memory(detector)
    backbone, heads = empty.backbone, empty.roi_heads
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        features = backbone(_empty(1, getattr(backbone, "in_chans", 3), *size))
        empty.rpn.head(list(features.values()))
        heads.box_predictor(heads.box_head(_pooled(PROPOSALS, backbone, heads.box_roi_pool)))
        if heads.has_mask():
            heads.mask_predictor(heads.mask_head(_pooled(MASKS, backbone, heads.mask_roi_pool)))
    return _of(counter) / 1e9


def _pooled(boxes: int, backbone: Any, pool: Any) -> Tensor:
    return _empty(boxes, backbone.out_channels, *pool.output_size)


def _of(counter: FlopCounterMode) -> int:
    return counter.get_total_flops() // 2  # a multiplication and an addition each


def _empty(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def _without_memory(model: M) -> M:
    """A copy in evaluation mode whose parameters and buffers have shapes alone."""
    twins: dict[int, Any] = {}
    for parameter in model.parameters():
        twins[id(parameter)] = nn.Parameter(_like(parameter), requires_grad=False)
    for buffer in model.buffers():
        twins[id(buffer)] = _like(buffer)
    return copy.deepcopy(model, twins).eval()  # deepcopy takes from there what is already copied


def _like(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="meta", dtype=torch.float32 if tensor.is_floating_point() else tensor.dtype)
