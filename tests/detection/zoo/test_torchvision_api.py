"""The torchvision-style builders: their names, the detectors that they build, and what they refuse."""

from __future__ import annotations

import warnings
from functools import partial
from typing import Any

import pytest
import timm
import torch
import torchvision
from torch import nn
from torchvision.models import detection, get_model, get_model_builder, get_model_weights, list_models
from torchvision.models.detection.anchor_utils import AnchorGenerator

from vovnet.adapters import fpn_backbone
from vovnet.detection import build_detector, zoo
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.zoo import torchvision_api
from vovnet.detection.zoo.torchvision_api import fasterrcnn_vovnet27_slim_fpn
from vovnet.errors import InputError

BACKBONES = ("vovnet27_slim", "vovnet39", "vovnet57")
KINDS = {
    "fasterrcnn": "",
    "maskrcnn": "",
    "keypointrcnn": "",
    "retinanet": "",
    "fcos": "",
    "fasterrcnn_v2": "_v2",
    "maskrcnn_v2": "_v2",
    "retinanet_v2": "_v2",
}
"""Kinds of builders, each with the end of its names."""


def name_of(kind: str, backbone: str) -> str:
    return f"{kind.removesuffix('_v2')}_{backbone}_fpn{KINDS[kind]}"


def test_torchvision_lists_all_builders_of_our_module() -> None:
    ours = {name_of(kind, backbone) for kind in KINDS for backbone in BACKBONES}
    legacy = {f"{kind}_legacy_resnet{depth}_fpn" for kind in ("fasterrcnn", "maskrcnn") for depth in (50, 101)}
    assert set(list_models(module=zoo)) == ours | legacy
    assert set(list_models(include="*vovnet*")) == ours
    for name in ours | legacy:
        builder = get_model_builder(name)
        assert builder is getattr(torchvision_api, name)
        assert builder.__name__ == name


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_builder_makes_torchvisions_class_with_its_heads(kind: str, backbone: str) -> None:
    """All but the backbone has the names and shapes of torchvision's detector over ResNet-50."""
    name, theirs = name_of(kind, backbone), f"{kind.removesuffix('_v2')}_resnet50_fpn{KINDS[kind]}"
    with torch.device("meta"):
        detector, expected = get_model(name, progress=False), get_model(theirs, weights_backbone=None)
    assert type(detector) is type(expected)
    assert all(parameter.requires_grad for parameter in detector.parameters())
    assert heads(detector) == heads(expected)
    assert anchors(detector) == anchors(expected)
    assert backbone in (get_model_builder(name).__doc__ or "")


def heads(detector: nn.Module) -> dict[str, tuple[int, ...]]:
    """Return the shapes outside the backbone and in the pyramid, but for the layers that read the backbone's maps."""
    shapes = {key: tuple(value.shape) for key, value in detector.state_dict().items()}
    readers = ("backbone.body.", "backbone.fpn.inner_blocks.")
    kept = {key: shape for key, shape in shapes.items() if not key.startswith(readers)}
    if (p6 := kept.get("backbone.fpn.extra_blocks.p6.weight")) and p6[1] != 256:  # reads the backbone's last map
        kept["backbone.fpn.extra_blocks.p6.weight"] = (p6[0], -1, *p6[2:])
    return kept


def anchors(detector: Any) -> tuple[Any, ...]:
    generator = getattr(detector, "anchor_generator", None) or detector.rpn.anchor_generator
    return generator.sizes, generator.aspect_ratios


def test_the_newer_retinanet_has_the_loss_of_torchvisions() -> None:
    with torch.device("meta"):
        losses = {
            name: get_model(name, weights_backbone=None).head.regression_head._loss_type
            for name in ("retinanet_vovnet39_fpn", "retinanet_vovnet39_fpn_v2", "retinanet_resnet50_fpn_v2")
        }
    assert list(losses.values()) == ["l1", "giou", "giou"]


@pytest.mark.parametrize(("kind", "outputs"), [("retinanet", 4), ("retinanet_v2", 4), ("fcos", 4)])
def test_one_stage_detectors_take_a_number_of_classes(kind: str, outputs: int) -> None:
    with torch.device("meta"):
        detector: Any = get_model(name_of(kind, "vovnet27_slim"), num_classes=outputs)
    head = detector.head.classification_head
    assert head.cls_logits.out_channels == outputs * head.num_anchors


def test_keypoints_are_persons_unless_said() -> None:
    with torch.device("meta"):
        person: Any = get_model("keypointrcnn_vovnet39_fpn")
        other: Any = get_model("keypointrcnn_vovnet39_fpn", num_classes=4, num_keypoints=5)
    for detector, outputs, points in ((person, 2, 17), (other, 4, 5)):
        assert detector.roi_heads.box_predictor.cls_score.out_features == outputs
        assert detector.roi_heads.keypoint_predictor.kps_score_lowres.out_channels == points


@pytest.mark.parametrize("kind", ["fasterrcnn_v2", "maskrcnn_v2", "retinanet_v2"])
def test_the_heads_of_the_newer_detectors_follow_given_anchors(kind: str) -> None:
    given = AnchorGenerator(((16, 20), (32, 40), (64, 80), (128, 160), (256, 320)), ((1.0,),) * 5)
    argument = "anchor_generator" if kind == "retinanet_v2" else "rpn_anchor_generator"
    with torch.device("meta"):
        detector: Any = get_model(name_of(kind, "vovnet27_slim"), num_classes=3, **{argument: given})
    if kind == "retinanet_v2":
        assert detector.anchor_generator is given
        assert detector.head.classification_head.num_anchors == 2
    else:
        assert detector.rpn.anchor_generator is given
        assert detector.rpn.head.cls_logits.out_channels == 2


@pytest.mark.parametrize(("kind", "trains"), [("retinanet", False), ("retinanet_v2", True), ("fasterrcnn_v2", True)])
def test_norms_of_a_pretrained_backbone_train_in_the_newer_detectors_alone(
    kind: str, trains: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchvision_api, "fpn_backbone", partial(fpn_backbone, download=False))
    with torch.device("meta"):
        detector: Any = get_model(name_of(kind, "vovnet27_slim"), weights_backbone=True)
    assert any(isinstance(module, nn.BatchNorm2d) for module in detector.backbone.body.modules()) == trains


@pytest.mark.parametrize("kind", ["keypointrcnn", "retinanet", "fcos", "retinanet_v2", "maskrcnn_v2"])
def test_a_detector_without_published_weights_says_so(kind: str) -> None:
    name = name_of(kind, "vovnet39")
    enum = get_model_weights(name)
    assert not [*enum]
    assert enum.__name__ in vars(detection)
    with pytest.raises(InputError, match="weights='COCO_V1': nothing is published of this detector"):
        get_model(name, weights="COCO_V1")


def test_torchvision_style_arguments_arrive() -> None:
    anchors = AnchorGenerator(((16,), (32,), (64,), (128,), (256,)), ((1.0,),) * 5)
    detector = fasterrcnn_vovnet27_slim_fpn(
        num_classes=4, min_size=(64, 72), image_mean=[0.0] * 3, rpn_anchor_generator=anchors, size_divisible=64
    )
    assert detector.roi_heads.box_predictor.cls_score.out_features == 4
    assert detector.transform.min_size == (64, 72)
    assert (detector.transform.image_mean, detector.transform.image_std) == ([0.0] * 3, [0.229, 0.224, 0.225])
    assert detector.rpn.anchor_generator is anchors
    assert detector.transform.size_divisible == 64
    predictor = nn.Identity()
    assert fasterrcnn_vovnet27_slim_fpn(box_predictor=predictor).roi_heads.box_predictor is predictor


def test_a_mistyped_argument_is_named_with_its_neighbour() -> None:
    with pytest.raises(TypeError, match="no argument 'box_score_tresh'; did you mean 'box_score_thresh'"):
        fasterrcnn_vovnet27_slim_fpn(box_score_tresh=0.1)
    with pytest.raises(TypeError, match="FasterRCNN has no argument 'mask_head'"):
        fasterrcnn_vovnet27_slim_fpn(mask_head=None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"weights": "DEFAULT"}, "weights='DEFAULT': nothing is published of this detector"),
        ({"weights_backbone": "no_such_tag"}, "weights_backbone must be None, True, 'DEFAULT' or a tag"),
        ({"trainable_backbone_layers": 6}, "trainable_backbone_layers must be 0 to 5, got 6"),
    ],
)
def test_torchvision_style_values_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        fasterrcnn_vovnet27_slim_fpn(**arguments)


@pytest.mark.parametrize("given", [True, "DEFAULT", "TAG"])
def test_a_pretrained_backbone_is_frozen_as_torchvision_freezes_it(
    given: bool | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def without_download(name: str, **options: Any) -> Any:
        asked.append(name)
        return fpn_backbone(name, download=False, **options)

    monkeypatch.setattr("vovnet.detection.zoo.torchvision_api.fpn_backbone", without_download)
    tag = timm.get_pretrained_cfg("vovnet39").tag
    with torch.device("meta"):
        detector = torchvision.models.get_model(
            "fasterrcnn_vovnet39_fpn", weights_backbone=tag if given == "TAG" else given
        )
    assert asked == [f"vovnet39.{tag}" if given == "TAG" else "vovnet39"]
    training = {k.split(".")[0] for k, p in detector.backbone.body.named_parameters() if p.requires_grad}
    assert training == {"stages_1", "stages_2", "stages_3"}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in detector.backbone.modules())


def test_stages_of_random_weights_all_train() -> None:
    with pytest.warns(UserWarning, match="trainable_backbone_layers=2 has no effect"):
        detector = fasterrcnn_vovnet27_slim_fpn(trainable_backbone_layers=2)
    assert all(p.requires_grad for p in detector.parameters())


def test_building_from_random_weights_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fasterrcnn_vovnet27_slim_fpn()
        build_detector(ModelRecipe(backbone="vovnet27_slim", num_classes=3))
