"""Find norms that would compute a mean and variance from a single value, which torch refuses, without computing."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vovnet.adapters.norms import values_per_statistic
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.models.build import build_detector


@dataclass(frozen=True)
class SingleValue:
    """A norm that would get one value for each mean.

    Attributes:
        name: its name in the detector, such as ``head.classification_head.conv.1``.
        grouped: True for a group norm, False for a batch norm.
    """

    name: str
    grouped: bool


class _Found(Exception):
    def __init__(self, norm: SingleValue) -> None:
        super().__init__(norm.name)
        self.norm = norm


def single_value(
    model: ModelRecipe, images: int, size: tuple[int, int], *, training: bool, processes: int = 1
) -> SingleValue | None:
    """Return the first norm of a detector that would compute a mean from one value, or None.

    The backbone and the heads of its levels run on the meta device, which takes no memory. Norms in heads of proposals
    see maps of several pixels and are not looked at.

    Args:
        model: the model recipe.
        images: the images of a batch in a process.
        size: height and width in pixels of the largest of them, before the detector pads it.
        training: whether batch norms compute the means of their input.
        processes: the processes over which ``sync_bn`` computes them.
    """
    plain: dict[str, Any] = {key: "bn" for key in ("norm", "fpn_norm", "head_norm") if getattr(model, key) == "sync_bn"}
    known: dict[str, Any] = {"num_classes": model.num_classes or 1, "num_keypoints": model.num_keypoints or 1}
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the detector that trains says the same
        detector: Any = build_detector(replace(model, **plain, **known), download=False).train(training)
    for name, module in detector.named_modules():
        if plain and processes > 1 and isinstance(module, _BatchNorm):
            module.eval()  # sees the images of several processes, and so several values
        if not name.startswith("roi_heads."):
            module.register_forward_pre_hook(_looking(name))
    step = detector.transform.size_divisible
    height, width = (-(-side // step) * step for side in size)
    pixels = torch.empty(images, model.in_chans, height, width, device="meta")
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            levels = [*detector.backbone(pixels).values()]
            (detector.rpn.head if hasattr(detector, "rpn") else detector.head)(levels)
    except _Found as found:
        return found.norm
    return None


def _looking(name: str) -> Any:
    def look(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], torch.Tensor) and inputs[0].ndim >= 2:
            shape = inputs[0].shape
            if values_per_statistic(module, shape) == 1:
                raise _Found(SingleValue(name, isinstance(module, nn.GroupNorm)))

    return look
