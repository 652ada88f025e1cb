"""Detectors: what recipes and torchvision's names build."""

import dataclasses
from typing import Any

import pytest
import torch
from small_networks import detector
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN

from vovnet.adapters import fpn_backbone
from vovnet.detection import build_detector
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.config.schema import Recipe
from vovnet.errors import InputError

SMALL: dict[str, Any] = {
    "backbone": "vovnet27_slim",
    "num_classes": 3,
    "min_size": 64,
    "max_size": 96,
    "fpn_channels": 16,
    "box_representation_size": 24,
    "mask_head_convs": 1,
    "mask_head_channels": 12,
    "box_detections_per_img": 7,
    "box_score_thresh": 0.0,
    "rpn_post_nms_top_n_train": 20,
    "rpn_post_nms_top_n_test": 20,
}
KINDS = {"faster_rcnn": FasterRCNN, "mask_rcnn": MaskRCNN}


def small(**changes: Any) -> ModelRecipe:
    return ModelRecipe(**{**SMALL, **changes})


def random_images(channels: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(channels, *size, generator=generator) for size in ((48, 70), (90, 64))]


def targets(images: list[Tensor]) -> list[dict[str, Tensor]]:
    return [
        {
            "boxes": torch.tensor([[4.0, 6.0, 40.0, 44.0], [10.0, 2.0, 30.0, 20.0]]),
            "labels": torch.tensor([1, 3]),
            "masks": torch.ones(2, *image.shape[1:], dtype=torch.uint8),
        }
        for image in images
    ]


def separated(detector: nn.Module) -> nn.Module:
    """Spread the scores, so that thresholds and ties hide no difference."""
    generator = torch.Generator().manual_seed(1)
    for parameter in detector.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape, generator=generator)
    return detector.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_builds_torchvisions_own_class_that_trains_and_detects(kind: str) -> None:
    detector = build_detector(Recipe(model=small(detector=kind)))
    assert type(detector) is KINDS[kind]
    losses = detector(random_images(), targets(random_images()))
    masks = {"loss_mask"} if kind == "mask_rcnn" else set()
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"} | masks
    sum(losses.values()).backward()
    assert [k for k, p in detector.named_parameters() if p.grad is None] == []
    found = detector.eval()(random_images())
    for result, image in zip(found, random_images(), strict=True):
        assert 0 < len(result["boxes"]) <= 7
        assert set(result["labels"].tolist()) <= {1, 2, 3}
        if kind == "mask_rcnn":
            assert result["masks"].shape[1:] == (1, *image.shape[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_as_built_by_hand_from_torchvisions_parts(kind: str) -> None:
    ours = separated(build_detector(small(detector=kind, mask_head_channels=256, mask_head_convs=4,
                                          box_representation_size=1024)))  # fmt: skip
    backbone = fpn_backbone("vovnet27_slim", out_channels=16, norm="bn")
    hand = KINDS[kind](
        backbone, num_classes=4, min_size=64, max_size=96, box_score_thresh=0.0, box_detections_per_img=7,
        rpn_post_nms_top_n_test=20,
    )  # fmt: skip
    hand.load_state_dict(ours.state_dict())
    hand.eval()
    for found, expected in zip(ours(random_images()), hand(random_images()), strict=True):
        assert set(found) == set(expected)
        for key in expected:
            torch.testing.assert_close(found[key], expected[key])


@pytest.mark.filterwarnings("ignore:.*torch.jit.*", "ignore:RCNN always returns")
@pytest.mark.parametrize("kind", KINDS)
def test_scripted_detector_finds_the_same(kind: str) -> None:
    detector = separated(build_detector(small(detector=kind)))
    _, found = torch.jit.script(detector)(random_images())
    for scripted, expected in zip(found, detector(random_images()), strict=True):
        assert len(expected["boxes"]) > 0
        for key in expected:
            torch.testing.assert_close(scripted[key], expected[key], rtol=1e-4, atol=1e-4)


def test_every_field_arrives() -> None:
    detector = build_detector(
        small(
            detector="mask_rcnn", extra_level="p6p7", fpn_norm="gn", aspect_ratios=[0.5, 2.0], rpn_head_convs=2,
            anchor_sizes=[[8, 12], [16, 24], [32, 48], [64, 96], [128, 192], [256, 384]], rpn_pre_nms_top_n_train=11,
            rpn_pre_nms_top_n_test=12, rpn_post_nms_top_n_train=9, rpn_post_nms_top_n_test=10,
            rpn_batch_size_per_image=13, box_nms_thresh=0.4, box_score_thresh=0.2, box_batch_size_per_image=14,
            mask_head_convs=2,
        )
    )  # fmt: skip
    rpn, heads, transform = detector.rpn, detector.roi_heads, detector.transform
    assert detector.backbone.level_names == ("0", "1", "2", "3", "p6", "p7")
    assert any(isinstance(m, nn.GroupNorm) for m in detector.backbone.fpn.modules())
    assert rpn.anchor_generator.sizes[1] == (16, 24)
    assert rpn.anchor_generator.num_anchors_per_location() == [4] * 6
    assert rpn.head.cls_logits.out_channels == 4
    assert len(rpn.head.conv) == 2
    assert (rpn._pre_nms_top_n, rpn._post_nms_top_n) == (
        {"training": 11, "testing": 12},
        {"training": 9, "testing": 10},
    )
    assert rpn.fg_bg_sampler.batch_size_per_image == 13
    assert (heads.nms_thresh, heads.score_thresh, heads.detections_per_img) == (0.4, 0.2, 7)
    assert heads.fg_bg_sampler.batch_size_per_image == 14
    assert heads.box_head.fc6.out_features == 24
    assert heads.box_predictor.cls_score.out_features == 4
    assert heads.box_roi_pool.featmap_names == heads.mask_roi_pool.featmap_names == ["0", "1", "2", "3"]
    assert [m.out_channels for m in heads.mask_head.modules() if isinstance(m, nn.Conv2d)] == [12, 12]
    assert heads.mask_predictor.mask_fcn_logits.out_channels == 4
    assert (transform.min_size, transform.max_size) == ((64,), 96)


def test_default_anchors_follow_the_number_of_levels() -> None:
    for extra, sizes in (("pool", [32, 64, 128, 256, 512]), (None, [32, 64, 128, 256])):
        generator = build_detector(small(extra_level=extra)).rpn.anchor_generator
        assert generator.sizes == tuple((s,) for s in sizes)
        assert generator.aspect_ratios == ((0.5, 1.0, 2.0),) * len(sizes)


def test_images_are_resized_in_evaluation_alone() -> None:
    detector = build_detector(small())
    assert detector.transform(random_images())[0].image_sizes == [(48, 70), (90, 64)]
    detector.eval()
    assert detector.transform(random_images())[0].image_sizes == [(64, 93), (90, 64)]


def test_normalisation_is_the_backbones_unless_the_recipe_says_otherwise() -> None:
    detector = build_detector(small(backbone="tf_efficientnet_lite0"))
    assert (detector.transform.image_mean, detector.transform.image_std) == ([0.5] * 3, [0.5] * 3)
    detector = build_detector(small(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]))
    assert (detector.transform.image_mean, detector.transform.image_std) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


@pytest.mark.parametrize("in_chans", [1, 4])
def test_other_channels_than_three(in_chans: int) -> None:
    detector = build_detector(small(in_chans=in_chans))
    images = random_images(in_chans)
    assert all(torch.isfinite(loss) for loss in detector(images, targets(images)).values())
    assert len(detector.eval()(images)) == 2


def test_frozen_without_a_download() -> None:
    recipe = small(pretrained=True, norm="frozen_bn", trainable_stages=2)
    detector = build_detector(recipe, download=False)
    trained = {k.split(".")[0] for k, p in detector.backbone.body.named_parameters() if p.requires_grad}
    assert trained == {"stages_2", "stages_3"}
    assert not any(isinstance(m, nn.BatchNorm2d) for m in detector.modules())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"detector": "yolo"}, "model.detector: expected one of 'faster_rcnn', 'mask_rcnn', 'keypoint_rcnn'"),
        ({"norm": "in"}, "model.norm"),
        ({"fpn_norm": "frozen_bn"}, "model.fpn_norm: expected one of 'bn', 'sync_bn' or 'gn' or null, got"),
        ({"extra_level": "p6"}, "model.extra_level"),
        ({"num_classes": None}, "model.num_classes is not set"),
        ({"num_classes": 0}, "model.num_classes"),
        ({"in_chans": 0}, "model.in_chans"),
        ({"fpn_channels": -1}, "model.fpn_channels"),
        ({"min_size": 0}, "model.min_size"),
        ({"max_size": 63}, "model.max_size"),
        ({"trainable_stages": -1}, "model.trainable_stages"),
        ({"trainable_stages": 6, "pretrained": True}, "trainable_stages must be 0 to 5"),
        ({"aspect_ratios": []}, "model.aspect_ratios"),
        ({"aspect_ratios": [0.5, 0.0]}, "model.aspect_ratios"),
        ({"image_mean": [0.5]}, r"model.image_mean"),
        ({"image_std": [0.5, 0.5, 0.0]}, "model.image_std"),
        ({"anchor_sizes": [[32]]}, "model.anchor_sizes"),
        ({"anchor_sizes": [[32], [64], [128], [256], [512, 600]]}, "model.anchor_sizes"),
        ({"anchor_sizes": [[32], [64], [128], [256], [-1]]}, "model.anchor_sizes"),
        ({"box_score_thresh": 1.5}, "model.box_score_thresh"),
        ({"box_nms_thresh": -0.1}, "model.box_nms_thresh"),
        ({"rpn_head_convs": 0}, "model.rpn_head_convs"),
        ({"mask_head_convs": 0}, "model.mask_head_convs"),
        ({"backbone": "vovnet93"}, "model.backbone 'vovnet93': timm knows no model"),
        ({"backbone_args": {"drop_pth": 0.1}}, "model.backbone_args: .*'drop_pth'"),
        ({"out_indices": [1, 3]}, r"model.backbone 'vovnet27_slim': out_indices \[1, 3\]"),
    ],
)
def test_wrong_fields_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_detector(small(**change), download=False)


def test_a_recipe_is_not_changed() -> None:
    recipe = small(aspect_ratios=[0.5, 1.0])
    before = dataclasses.asdict(recipe)
    build_detector(recipe)
    assert dataclasses.asdict(recipe) == before


@pytest.mark.parametrize("kind", ["faster_rcnn", "mask_rcnn", "keypoint_rcnn"])
def test_a_first_image_does_not_change_what_is_found_in_later_ones(kind: str) -> None:
    torch.manual_seed(0)
    narrow, image = torch.rand(3, 16, 100), torch.rand(3, 96, 128)  # 16 pixels become 20, and padding makes them 32
    given = {"min_size": "64", "max_size": "128", "num_keypoints": "3"}
    alone, later = (detector(f"{kind}_vovnet39_fpn", **given) for _ in range(2))
    with torch.no_grad():
        later([narrow])
        (expected,), (found,) = alone([image]), later([image])
    assert len(expected["boxes"])
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
