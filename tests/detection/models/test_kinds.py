"""Each kind of detector is the one that is built by hand from torchvision's class over timm's features."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn
from torchvision.models import detection
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from vovnet.detection import build_detector
from vovnet.detection.config.detectors import DETECTORS
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.models.build import BUILDERS
from vovnet.errors import InputError

NETWORK: dict[str, Any] = {
    "stem_chs": [8, 16, 16],
    "stage_conv_chs": [16, 16, 24, 20],
    "stage_out_chs": [32, 40, 48, 56],
    "block_per_stage": [1, 1, 1, 1],
    "layer_per_block": 3,
}
CHANNELS = 32
ONE_STAGE = [name for name, facts in DETECTORS.items() if facts.one_stage]
SIZES = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "min_size": 64, "max_size": 96}


class ByHand(nn.Module):
    """timm's features and torchvision's pyramid, as its documentation shows for a backbone of one's own."""

    def __init__(self, indices: tuple[int, ...], extra: nn.Module) -> None:
        super().__init__()
        self.body = timm.create_model("vovnet27_slim", features_only=True, out_indices=indices, **NETWORK)
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), CHANNELS, extra)  # type: ignore[arg-type]
        self.out_channels = CHANNELS

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return self.fpn(OrderedDict((str(i), one) for i, one in enumerate(self.body(images))))  # type: ignore[no-any-return]


def two_stage(kind: str, classes: int | None = 4, **arguments: Any) -> nn.Module:
    backbone = ByHand((1, 2, 3, 4), LastLevelMaxPool())
    arguments |= {"box_score_thresh": 0.0, "box_detections_per_img": 8, "rpn_post_nms_top_n_train": 50}
    head = TwoMLPHead(CHANNELS * 49, 1024)
    return getattr(detection, kind)(backbone, classes, box_head=head, **SIZES, **arguments)  # type: ignore[no-any-return]


def mask_rcnn() -> nn.Module:
    """With one narrow convolution, to be quick."""
    head, predictor = MaskRCNNHeads(CHANNELS, (16,), 1), MaskRCNNPredictor(16, 16, 4)
    boxes = FastRCNNPredictor(1024, 4)
    return two_stage("MaskRCNN", None, box_predictor=boxes, mask_head=head, mask_predictor=predictor)


def keypoint_rcnn() -> nn.Module:
    head, predictor = KeypointRCNNHeads(CHANNELS, (16,)), KeypointRCNNPredictor(16, 5)
    return two_stage("KeypointRCNN", keypoint_head=head, keypoint_predictor=predictor)


def one_stage(kind: str, last: int = CHANNELS, **arguments: Any) -> nn.Module:
    backbone = ByHand((2, 3, 4), LastLevelP6P7(last, CHANNELS))
    return getattr(detection, kind)(backbone, 4, score_thresh=0.0, **SIZES, **arguments)  # type: ignore[no-any-return]


def newer_retinanet() -> nn.Module:
    """As torchvision's ``retinanet_resnet50_fpn_v2``, with as many groups as there are channels."""
    sizes = tuple((x, int(x * 2 ** (1 / 3)), int(x * 2 ** (2 / 3))) for x in (32, 64, 128, 256, 512))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)
    head = RetinaNetHead(CHANNELS, 9, 4, partial(nn.GroupNorm, 32))
    head.regression_head._loss_type = "giou"
    return one_stage("RetinaNet", NETWORK["stage_out_chs"][-1], anchor_generator=anchors, head=head)


QUICK = {"box_detections_per_img": 8, "rpn_post_nms_top_n_train": 50}
MASK = {**QUICK, "mask_head_convs": 1, "mask_head_channels": 16}
KEYPOINT = {**QUICK, "num_keypoints": 5, "keypoint_head_convs": 1, "keypoint_head_channels": 16}
RETINANET = {"box_detections_per_img": 300}
NEWER = {**RETINANET, "head_norm": "gn", "extra_level": "p6p7_c5", "regression_loss": "giou"}
CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "faster_rcnn": (partial(two_stage, "FasterRCNN"), QUICK),
    "mask_rcnn": (mask_rcnn, MASK),
    "keypoint_rcnn": (keypoint_rcnn, KEYPOINT),
    "retinanet": (partial(one_stage, "RetinaNet"), RETINANET),
    "fcos": (partial(one_stage, "FCOS"), {"box_nms_thresh": 0.6}),
    "retinanet, v2": (newer_retinanet, NEWER),
}
"""The detector by hand, and what a recipe for the same says."""


def recipe(kind: str, **changes: Any) -> ModelRecipe:
    given = {"backbone": "vovnet27_slim", "backbone_args": NETWORK, "num_classes": 3, "fpn_channels": CHANNELS}
    settings = {"min_size": 64, "max_size": 96, "box_score_thresh": 0.0}
    return ModelRecipe(**{**given, **settings, "detector": kind, **changes})  # type: ignore[arg-type]


def batch() -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(0)
    images = [torch.rand(3, *size, generator=generator) for size in ((64, 96), (80, 64))]
    targets = []
    for image in images:
        boxes = torch.tensor([[4.0, 6.0, 44.0, 50.0], [10.0, 2.0, 30.0, 20.0]])
        points = torch.rand(2, 5, 2, generator=generator) * (boxes[:, None, 2:] - boxes[:, None, :2])
        masks = torch.zeros(2, *image.shape[1:], dtype=torch.uint8)
        masks[:, 8:20, 12:28] = 1
        targets.append(
            {
                "boxes": boxes,
                "labels": torch.tensor([1, 3]),
                "masks": masks,
                "keypoints": torch.cat([points + boxes[:, None, :2], torch.ones(2, 5, 1)], 2),
            }
        )
    return images, targets


def spread(model: nn.Module) -> nn.Module:
    """Spread the scores, so that thresholds and ties hide no difference."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.mark.parametrize("case", CASES)
def test_losses_and_detections_are_those_of_the_detector_by_hand(case: str) -> None:
    by_hand, changes = CASES[case]
    torch.manual_seed(0)
    ours, theirs = spread(build_detector(recipe(case.partition(",")[0], **changes))), by_hand()
    theirs.transform._skip_resize = True  # type: ignore[union-attr]
    assert type(ours) is type(theirs)
    theirs.load_state_dict(ours.state_dict())
    images, targets = batch()
    found, expected = losses(ours, images, targets), losses(theirs, images, targets)
    assert found == expected
    assert all(value > 0 for value in found.values())
    for one, other in zip(ours.eval()(images), theirs.eval()(images), strict=True):
        assert one.keys() == other.keys()
        assert len(one["boxes"]) > 5
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(("kind", "extra"), [("mask_rcnn", {}), ("keypoint_rcnn", {"num_keypoints": 17})])
def test_the_heads_are_torchvisions_own_unless_the_recipe_says_otherwise(kind: str, extra: dict[str, Any]) -> None:
    with torch.device("meta"):
        ours = build_detector(recipe(kind, **extra))
        theirs = two_stage(DETECTORS[kind].torchvision)  # type: ignore[index]
    assert [(key, one.shape) for key, one in ours.state_dict().items()] == [
        (key, one.shape) for key, one in theirs.state_dict().items()
    ]


def losses(model: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, float]:
    torch.manual_seed(4)  # the samples of anchors and boxes
    found = model.train()(images, [dict(target) for target in targets])
    sum(found.values()).backward()
    assert [key for key, one in model.named_parameters() if one.grad is None] == []
    return {key: float(value.detach()) for key, value in found.items()}


def test_every_kind_has_a_row_a_builder_and_a_case() -> None:
    assert set(DETECTORS) == set(BUILDERS) == {case.partition(",")[0] for case in CASES}


@pytest.mark.parametrize("kind", DETECTORS)
def test_the_table_is_true_of_the_detector(kind: str) -> None:
    facts = DETECTORS[kind]  # type: ignore[index]
    with torch.device("meta"):
        made, more = (build_detector(recipe(kind, num_classes=count, num_keypoints=count)) for count in (3, 4))
    assert type(made).__name__ == facts.torchvision
    unequal = {key for key, value in made.state_dict().items() if value.shape != more.state_dict()[key].shape}
    assert all(key.startswith(facts.class_parts) for key in unequal)
    assert all(any(key.startswith(part) for key in unequal) for part in facts.class_parts)
    assert all(any(key.startswith(part) for key in made.state_dict()) for part in facts.own_parts)
    assert hasattr(made, "roi_heads") != facts.one_stage
    assert made.backbone.strides[: len(facts.strides)] == facts.strides  # type: ignore[union-attr, index]


@pytest.mark.parametrize("kind", ONE_STAGE)
def test_settings_of_one_stage_detectors_arrive(kind: str) -> None:
    settings = {"box_score_thresh": 0.2, "box_nms_thresh": 0.4, "box_detections_per_img": 7, "topk_candidates": 11}
    with torch.device("meta"):
        made: Any = build_detector(recipe(kind, **settings, anchor_sizes=[[4], [8], [16], [32], [64]]))
    assert (made.score_thresh, made.nms_thresh) == (0.2, 0.4)
    assert (made.detections_per_img, made.topk_candidates) == (7, 11)
    assert made.anchor_generator.sizes == ((4,), (8,), (16,), (32,), (64,))


@pytest.mark.parametrize(
    ("kind", "changes", "key"),
    [
        ("retinanet", {"conventions": "legacy"}, "model.detector"),
        ("fcos", {"conventions": "legacy"}, "model.detector"),
        ("keypoint_rcnn", {"conventions": "legacy"}, "model.detector"),
        ("keypoint_rcnn", {}, "model.num_keypoints"),
        ("keypoint_rcnn", {"num_keypoints": 0}, "model.num_keypoints"),
        ("fcos", {"anchor_sizes": [[8, 12], [16, 24], [32, 48], [64, 96], [128, 192]]}, "model.anchor_sizes"),
        ("fcos", {"anchor_sizes": [[8], [16], [32]]}, "model.anchor_sizes"),
        ("fcos", {"aspect_ratios": [0.5, 2.0]}, "model.aspect_ratios"),
        ("retinanet", {"anchor_sizes": [[32], [64], [128], [256]]}, "model.anchor_sizes"),
        ("retinanet", {"anchor_sizes": [[32], [64], [128], [256], [512]], "extra_level": None}, "model.anchor_sizes"),
        ("retinanet", {"anchor_sizes": [[32], [64], [128], [256], [512, 600]]}, "model.anchor_sizes"),
        ("retinanet", {"regression_loss": "l2"}, "model.regression_loss"),
        ("retinanet", {"topk_candidates": 0}, "model.topk_candidates"),
        ("fcos", {"extra_level": "p6"}, "model.extra_level"),
    ],
)
def test_what_does_not_fit_the_kind_is_one_line_with_the_key(kind: str, changes: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError) as refused:
        build_detector(recipe(kind, **changes), download=False)
    assert str(refused.value).startswith(key)
    assert "\n" not in str(refused.value)
