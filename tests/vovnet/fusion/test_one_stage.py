"""Fused RetinaNet, FCOS, SSD and Keypoint R-CNN against torchvision's."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fused_parts import check_detections, relative_error
from osa_reference import draw
from small_networks import MODEL, network, trained
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNPredictor
from torchvision.models.detection.ssd import SSD

from vovnet import fuse
from vovnet.adapters import fpn_backbone
from vovnet.detection import build_detector, load_recipe
from vovnet.fusion.two_stage import FusedKeypointPredictor

KINDS: dict[str, dict[str, str]] = {
    "retinanet": {"detector": "retinanet"},
    "retinanet, norms in the head": {"detector": "retinanet", "head_norm": "bn", "norm": "frozen_bn"},
    "fcos": {"detector": "fcos", "fpn_channels": "64"},  # group norms of two channels
}
BOUNDS = {"fp32": 1e-5, "bf16": 6e-2}


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    """Turn off gradients, and turn unexpected warnings into errors."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


def made(kind: str) -> Any:
    torch.manual_seed(0)
    overrides = [f"model.{key}={value}" for key, value in (MODEL | KINDS[kind]).items()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # frozen norms of random weights
        model: Any = trained(build_detector(load_recipe("faster_rcnn_vovnet39_fpn", overrides), download=False))
    return lively(model)


def lively(model: Any) -> Any:
    """Let a head predict many different scores, and boxes that differ from their anchors."""
    for name, part in model.head.named_modules():
        if isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=(0.02 if "bbox" in name or "regression" in name else 0.06))
    for name, parameter in model.head.named_parameters():
        if name.endswith("cls_logits.bias"):
            nn.init.constant_(parameter, -1)
    return model


def images() -> list[Tensor]:
    return [draw((3, 70, 100), 1, torch.float32).sigmoid(), draw((3, 96, 64), 2, torch.float32).sigmoid()]


def plain_layers(model: nn.Module) -> list[nn.Module]:
    return [part for part in model.modules() if isinstance(part, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]


@pytest.mark.parametrize("kind", KINDS)
def test_detections(kind: str, way: str) -> None:
    model = made(kind)
    fused: Any = fuse(model)
    assert type(fused) is type(model)
    assert not plain_layers(fused)
    check_detections(fused(images()), model(images()))


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("kind", KINDS)
def test_heads(kind: str, precision: str, way: str) -> None:
    """Predictors compute in float32."""
    model = made(kind)
    fused: Any = fuse(model, precision=precision)  # type: ignore[arg-type]
    levels = [draw((2, model.backbone.out_channels, n, n + 3), n, torch.float32) for n in (12, 6, 3)]
    exact = copy.deepcopy(model.head).double()([x.double() for x in levels])
    for key, found in fused.head(levels).items():
        assert found.dtype == torch.float32
        assert relative_error(found, exact[key]) <= BOUNDS[precision]


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16(kind: str, way: str) -> None:
    """The pyramid stays in bfloat16; what is detected is float32, and the same as with maps in float32."""
    fused: Any = fuse(made(kind), precision="bf16")
    x = draw((1, 3, 96, 128), 1, torch.float32)
    assert {value.dtype for value in fused.backbone(x).values()} == {torch.bfloat16}
    found = fused(images())
    assert all(one[key].dtype == torch.float32 for one in found for key in ("boxes", "scores"))
    fused.backbone.fpn.keeps_bfloat16 = False
    check_detections(found, fused(images()))


def test_a_head_with_a_hook_takes_float32(way: str) -> None:
    model = made("retinanet")
    seen: list[Any] = []
    model.head.classification_head.register_forward_hook(lambda module, inputs, _: seen.append(inputs[0]))
    fused: Any = fuse(model, precision="bf16")
    fused(images())
    assert {x.dtype for x in seen[0]} == {torch.float32}


def test_a_predictor_with_a_hook_is_left_and_said(way: str) -> None:
    model = made("fcos")
    model.head.regression_head.bbox_ctrness.register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="left as they are: head.regression_head.bbox_ctrness "):
        fused = fuse(model)
    assert len(plain_layers(fused)) == 1
    check_detections(fused(images()), model(images()))


def ssd() -> Any:
    """torchvision's SSD over a pyramid of ours."""
    torch.manual_seed(0)
    backbone: Any = fpn_backbone(
        network(features_only=True), norm="bn", out_channels=32, strides=(8, 16, 32), per_level_channels=True
    )
    boxes = DefaultBoxGenerator([[2], [2, 3], [2, 3], [2]], steps=list(backbone.strides))
    mean, std = list(backbone.mean), list(backbone.std)
    return SSD(backbone, boxes, (96, 128), num_classes=4, image_mean=mean, image_std=std, detections_per_img=30)


def test_ssd(way: str) -> None:
    model = lively(ssd().eval())
    fused = fuse(model)
    assert not plain_layers(fused)
    check_detections(fused(images()), model(images()))
    low = fuse(model, precision="bf16")(images())
    assert all(one[key].dtype == torch.float32 for one in low for key in ("boxes", "scores"))


def test_ssd_trains() -> None:
    model = ssd().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
    target = {"boxes": torch.tensor([[10.0, 12, 60, 50]]), "labels": torch.tensor([2])}
    totals = []
    with torch.enable_grad():
        for _ in range(6):
            losses = model(images(), [target, target])
            total = sum(losses.values())
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            totals.append(float(total.detach()))
    assert {"bbox_regression", "classification"} == set(losses)
    assert totals[-1] < totals[0]
    assert all(parameter.grad is not None for parameter in model.head.parameters())


@pytest.mark.parametrize("precision", BOUNDS)
def test_keypoint_predictor(precision: str, way: str) -> None:
    predictor = KeypointRCNNPredictor(24, 5).eval()
    nn.init.normal_(predictor.kps_score_lowres.bias)
    x = draw((3, 24, 14, 11), 0, torch.float32)
    fused = fuse(predictor, precision=precision)  # type: ignore[arg-type]
    assert type(fused) is FusedKeypointPredictor
    assert relative_error(fused(x), copy.deepcopy(predictor).double()(x.double())) <= 1e-5
    assert fused(x[:0]).shape == (0, 5, 56, 44)


@pytest.mark.parametrize("change", ["stride", "hook"])
def test_other_keypoint_predictors_stay(change: str) -> None:
    predictor = KeypointRCNNPredictor(24, 5).eval()
    if change == "hook":
        predictor.kps_score_lowres.register_forward_hook(lambda *_: None)
    else:
        predictor.kps_score_lowres = nn.ConvTranspose2d(24, 5, 4, stride=1, padding=1)
    with pytest.warns(UserWarning, match="not a plain one of 4×4"):
        fused = fuse(predictor)
    x = draw((3, 24, 7, 7), 0, torch.float32)
    torch.testing.assert_close(fused(x), predictor(x))
