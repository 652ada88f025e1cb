"""``memory_efficient`` in each of the detectors: losses and gradients equal the plain detector's."""

from __future__ import annotations

import copy
import warnings
from typing import Any, get_args

import pytest
import torch
from osa_reference import draw
from small_networks import MODEL, trained
from torch import Tensor, nn

from vovnet import memory_efficient
from vovnet.detection import build_detector, load_recipe
from vovnet.detection.config.detectors import DETECTORS, DetectorName
from vovnet.memory.layers import MemoryEfficientOsaBlock


def made(name: DetectorName, norm: str) -> Any:
    """Return a detector in float64, so that rounding changes no choice of proposals."""
    torch.manual_seed(0)
    model = MODEL | {"detector": name, "norm": norm, "fpn_channels": "64", "box_batch_size_per_image": "16"}
    if DETECTORS[name].needs_keypoints:
        model |= {"num_keypoints": "2", "keypoint_head_channels": "16"}
    if DETECTORS[name].needs_masks:
        model["mask_head_channels"] = "16"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # frozen norms of random weights
        built = build_detector(
            load_recipe("faster_rcnn_vovnet39_fpn", [f"model.{key}={value}" for key, value in model.items()]),
            download=False,
        )
    return trained(built).double().train()


def targets() -> list[dict[str, Tensor]]:
    boxes = torch.tensor([[8.0, 10, 70, 60], [50, 20, 110, 90]], dtype=torch.float64)
    masks = torch.zeros(2, 96, 128, dtype=torch.uint8)
    masks[0, 10:60, 8:70] = masks[1, 20:90, 50:110] = 1
    keypoints = torch.tensor([[[20.0, 30, 1], [60, 50, 1]], [[60, 40, 1], [100, 80, 1]]])
    return [{"boxes": boxes, "labels": torch.tensor([1, 3]), "masks": masks, "keypoints": keypoints}]


def step(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    torch.manual_seed(1)  # torchvision samples proposals
    losses = model([draw((3, 96, 128), 1, torch.float64).sigmoid()], targets())
    sum(losses.values()).backward()
    grads = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {name: value.detach() for name, value in losses.items()}, grads


@pytest.mark.parametrize(("name", "norm"), [*((name, "bn") for name in get_args(DetectorName)), ("fcos", "frozen_bn")])
def test_losses_and_gradients(name: DetectorName, norm: str) -> None:
    model = made(name, norm)
    less = memory_efficient(copy.deepcopy(model), "low")
    assert any(isinstance(part, MemoryEfficientOsaBlock) for part in less.modules())
    (losses, grads), (other_losses, other_grads) = step(model), step(less)
    assert losses.keys() == other_losses.keys()
    assert grads.keys() == other_grads.keys()
    assert any(name.startswith("backbone.body.stem") for name in grads)
    for key, value in losses.items():
        torch.testing.assert_close(other_losses[key], value, rtol=1e-9, atol=1e-12)
    for key, value in grads.items():
        torch.testing.assert_close(other_grads[key], value, rtol=1e-7, atol=1e-9 * float(value.abs().max()) + 1e-15)
