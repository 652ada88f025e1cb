"""Multiply-adds: torchvision's own numbers, the papers', and a count by hand."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights

import vovnet  # noqa: F401 (registers the networks)
from vovnet.detection import build_detector
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.models.flops import classifier_gmacs, detector_gmacs, multiply_adds

SMALL: dict[str, Any] = {
    "backbone": "vovnet27_slim",
    "num_classes": 3,
    "fpn_channels": 16,
    "box_representation_size": 24,
    "mask_head_convs": 2,
    "mask_head_channels": 12,
}


class Count:
    """The multiply-adds of every convolution and linear layer that runs, from the shapes that went in and out."""

    def __init__(self, model: nn.Module) -> None:
        self.total = 0
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                layer.register_forward_hook(self._add)

    def _add(self, layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(layer, nn.Linear):
            self.total += output.numel() * layer.in_features
        elif isinstance(layer, nn.ConvTranspose2d):  # each input number goes to each place of the kernel
            self.total += inputs[0].numel() * layer.out_channels // layer.groups * math.prod(layer.kernel_size)
        else:
            self.total += output.numel() * layer.in_channels // layer.groups * math.prod(layer.kernel_size)


@pytest.mark.parametrize(
    "name",
    [
        "fasterrcnn_resnet50_fpn",
        "fasterrcnn_resnet50_fpn_v2",
        "maskrcnn_resnet50_fpn_v2",
        "retinanet_resnet50_fpn",
        "retinanet_resnet50_fpn_v2",
        "fcos_resnet50_fpn",
    ],
)
def test_torchvisions_numbers_of_its_detectors(name: str) -> None:
    with torch.device("meta"):
        detector = get_model(name, weights=None, weights_backbone=None)
    published = get_model_weights(name).DEFAULT.meta["_ops"]
    assert round(detector_gmacs(detector, (800, 800)), 3) == published


@pytest.mark.parametrize("name", ["resnet50", "mobilenet_v3_large", "swin_t", "vit_b_16"])
def test_torchvisions_numbers_of_its_classifiers(name: str) -> None:
    """Depthwise convolutions and attention, too."""
    published = get_model_weights(name).DEFAULT.meta["_ops"]
    with torch.device("meta"):
        model = get_model(name)
    assert multiply_adds(model, (1, 3, 224, 224)) / 1e9 == pytest.approx(published, rel=0.01)


def test_vovnet39_costs_what_is_known_of_it() -> None:
    """7.1 GMACs (timm's table of VoVNet-39a, which has the same convolutions, says 7.09)."""
    assert classifier_gmacs(timm.create_model("vovnet39", device="meta")) == pytest.approx(7.09, abs=0.02)


def test_a_network_counted_by_hand() -> None:
    model = timm.create_model("vovnet27_slim", num_classes=5).eval()
    hand = copy.deepcopy(model)
    count = Count(hand)
    with torch.no_grad():
        hand(torch.rand(2, 3, 65, 97))
    assert multiply_adds(model, (2, 3, 65, 97)) == count.total > 0


def test_the_image_is_the_networks_own() -> None:
    model = timm.create_model("vovnet27_slim", num_classes=0)
    model.pretrained_cfg["input_size"] = (3, 64, 96)
    assert classifier_gmacs(model) == multiply_adds(model, (1, 3, 64, 96)) / 1e9
    grey = timm.create_model("vovnet27_slim", in_chans=1)
    assert classifier_gmacs(grey) == multiply_adds(grey, (1, 1, 224, 224)) / 1e9
    features = timm.create_model("vovnet27_slim", features_only=True)
    whole = timm.create_model("vovnet27_slim", num_classes=1000)
    assert classifier_gmacs(whole) - classifier_gmacs(features) == pytest.approx(512 * 1000 / 1e9)


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn"])
@pytest.mark.parametrize("conventions", ["torchvision", "legacy"])
def test_a_detector_counted_by_hand(kind: str, conventions: str) -> None:
    detector = build_detector(ModelRecipe(**SMALL, detector=kind, conventions=conventions)).eval()
    hand: Any = copy.deepcopy(detector)
    count = Count(hand)
    with torch.no_grad():
        features = hand.backbone(torch.rand(1, 3, 64, 96))
        hand.rpn.head([*features.values()])
        hand.roi_heads.box_predictor(hand.roi_heads.box_head(torch.rand(1000, 16, 7, 7)))
        if kind == "mask_rcnn":
            hand.roi_heads.mask_predictor(hand.roi_heads.mask_head(torch.rand(100, 16, 14, 14)))
    assert detector_gmacs(detector, (64, 96)) == count.total / 1e9 > 0


@pytest.mark.parametrize("kind", ["retinanet", "fcos", "keypoint_rcnn"])
def test_other_detectors_counted_by_hand(kind: str) -> None:
    changes = {"num_keypoints": 5, "keypoint_head_convs": 1, "keypoint_head_channels": 12}
    detector = build_detector(ModelRecipe(**SMALL, **changes, detector=kind)).eval()
    hand: Any = copy.deepcopy(detector)
    count = Count(hand)
    with torch.no_grad():
        features = hand.backbone(torch.rand(1, 3, 256, 384))
        if kind == "keypoint_rcnn":
            hand.rpn.head([*features.values()])
            hand.roi_heads.box_predictor(hand.roi_heads.box_head(torch.rand(1000, 16, 7, 7)))
            hand.roi_heads.keypoint_predictor(hand.roi_heads.keypoint_head(torch.rand(100, 16, 14, 14)))
        else:
            hand.head([*features.values()])
    assert detector_gmacs(detector, (256, 384)) == count.total / 1e9 > 0


def test_other_channels_and_heads() -> None:
    changes = {"in_chans": 1, "box_head_convs": 1, "head_norm": "gn", "extra_level": "p6p7"}
    assert detector_gmacs(build_detector(ModelRecipe(**SMALL, **changes)), (64, 96)) > 0


def test_the_size_is_that_of_a_coco_image_unless_said() -> None:
    detector = build_detector(ModelRecipe(**SMALL))
    assert detector_gmacs(detector) == detector_gmacs(detector, (800, 1344)) > detector_gmacs(detector, (800, 800))


@pytest.mark.parametrize("kind", ["detector", "network"])
def test_the_model_stays_as_it_is(kind: str) -> None:
    """Its modes, its statistics, its numbers, and where they are."""
    model: Any = build_detector(ModelRecipe(**SMALL)) if kind == "detector" else timm.create_model("vovnet27_slim")
    next(model.children()).eval()  # some parts in another mode than the rest
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    assert len(set(modes)) == 2
    detector_gmacs(model, (64, 96)) if kind == "detector" else multiply_adds(model, (1, 3, 64, 64))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


def test_counting_takes_no_memory() -> None:
    """A layer of four terabytes and its output of as many."""
    with torch.device("meta"):
        layer = nn.Linear(10**6, 10**6, bias=False)
    assert multiply_adds(layer, (10**6, 10**6)) == 10**18


def test_torchvisions_mask_head_is_the_difference_between_its_detectors() -> None:
    """Which shows that its numbers are of 100 boxes with masks."""
    ops = {
        kind: getattr(torchvision.models.detection, f"{kind}RCNN_ResNet50_FPN_V2_Weights").DEFAULT.meta["_ops"]
        for kind in ("Faster", "Mask")
    }
    with torch.device("meta"):
        heads: Any = get_model("maskrcnn_resnet50_fpn_v2", weights=None, weights_backbone=None).roi_heads
    masks = multiply_adds(nn.Sequential(heads.mask_head, heads.mask_predictor), (100, 256, 14, 14)) / 1e9
    assert ops["Mask"] - ops["Faster"] == pytest.approx(masks, abs=1e-3)
