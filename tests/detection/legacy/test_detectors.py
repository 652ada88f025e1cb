"""Legacy detectors: torchvision's classes with other parts, the reference's start, and folders that keep all of it."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import zlib
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.layers import FrozenBatchNormAct2d
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import FrozenBatchNorm2d

from vovnet.adapters import fpn_backbone
from vovnet.detection.config.loading import load_recipe, recipe_from_dict, recipe_names, recipe_to_dict
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.config.schema import Recipe
from vovnet.detection.legacy.anchors import base_anchors
from vovnet.detection.legacy.detectors import exact_backbone
from vovnet.detection.legacy.masks import Polygons
from vovnet.detection.models.build import build_detector
from vovnet.detection.training.optimizer import learning_rate_factor
from vovnet.detection.training.rules import rules_of
from vovnet.errors import InputError
from vovnet.hub import load_detector

PUBLISHED = sorted(name for name in recipe_names() if "_FPN_" in name)
MEAN_BGR = [102.9801, 115.9465, 122.7717]
CATEGORIES = [{"id": 3, "name": "car"}, {"id": 9, "name": "boat"}]


def model_recipe(**settings: Any) -> ModelRecipe:
    tiny: dict[str, Any] = {
        "detector": "mask_rcnn",
        "conventions": "legacy",
        "backbone": "vovnet27_slim",
        "fpn_channels": 16,
        "box_representation_size": 32,
        "mask_head_channels": 8,
        "mask_head_convs": 1,
        "num_classes": 2,
        "min_size": 64,
        "max_size": 96,
        "rpn_pre_nms_top_n_test": 100,
        "rpn_post_nms_top_n_test": 50,
        "box_score_thresh": 0.0,
    }
    return ModelRecipe(**{**tiny, **settings})


def built(seed: int = 0, **settings: Any) -> Any:
    torch.manual_seed(seed)
    return build_detector(model_recipe(**settings), download=False).eval()


@pytest.fixture(scope="module")
def detector() -> Any:
    return built()


def on_meta(name: str, *overrides: str) -> tuple[Recipe, Any]:
    recipe = load_recipe(name, ["model.num_classes=80", *overrides])
    with torch.device("meta"):
        return recipe, build_detector(recipe, download=False)


def test_it_is_torchvisions_detector(detector: Any) -> None:
    assert type(detector) is MaskRCNN
    assert type(built(detector="faster_rcnn")) is FasterRCNN
    assert isinstance(detector.rpn, RegionProposalNetwork)
    assert isinstance(detector.roi_heads, RoIHeads)
    assert isinstance(detector.transform, GeneralizedRCNNTransform)


def test_settings_reach_the_parts() -> None:
    detector = built(
        rpn_pre_nms_top_n_train=11,
        rpn_post_nms_top_n_train=12,
        rpn_batch_size_per_image=13,
        box_batch_size_per_image=14,
        box_score_thresh=0.15,
        box_nms_thresh=0.16,
        box_detections_per_img=17,
        anchor_sizes=[[16], [32], [64], [128], [256]],
    )
    rpn, heads = detector.rpn, detector.roi_heads
    assert (rpn._pre_nms_top_n, rpn._post_nms_top_n) == (
        {"training": 11, "testing": 100},
        {"training": 12, "testing": 50},
    )
    assert (rpn.nms_thresh, rpn.fg_bg_sampler.batch_size_per_image, rpn.fg_bg_sampler.positive_fraction) == (
        0.7,
        13,
        0.5,
    )
    assert (rpn.proposal_matcher.high_threshold, rpn.proposal_matcher.low_threshold) == (0.7, 0.3)
    assert rpn.proposal_matcher.allow_low_quality_matches
    assert (heads.proposal_matcher.high_threshold, heads.proposal_matcher.low_threshold) == (0.5, 0.5)
    assert not heads.proposal_matcher.allow_low_quality_matches
    assert (heads.fg_bg_sampler.batch_size_per_image, heads.fg_bg_sampler.positive_fraction) == (14, 0.25)
    assert (heads.score_thresh, heads.nms_thresh, heads.detections_per_img) == (0.15, 0.16, 17)
    assert [pool.output_size for pool in (heads.box_roi_pool, heads.mask_roi_pool)] == [(7, 7), (14, 14)]
    for pool in (heads.box_roi_pool, heads.mask_roi_pool):
        assert pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]
        assert pool.sampling_ratio == 2
    assert rpn.anchor_generator.strides == (4, 8, 16, 32, 64)
    areas = [(cells[1, 2] - cells[1, 0] + 1) for cells in rpn.anchor_generator._cells]
    assert [float(area) for area in areas] == [16, 32, 64, 128, 256]


def test_frozen_norms_equal_the_reference(units: dict[str, Any]) -> None:
    names = ("weight", "bias", "running_mean", "running_var")
    features: Any = fpn_backbone("vovnet27_slim", pretrained=True, norm="frozen_bn", download=False)
    exact_backbone(features)
    frozen = [m for m in features.body.modules() if isinstance(m, FrozenBatchNorm2d | FrozenBatchNormAct2d)]
    assert frozen
    assert all(norm.eps == 0 for norm in frozen)
    made: list[Any] = [FrozenBatchNorm2d(5, eps=0.0)]
    if isinstance(frozen[0], FrozenBatchNormAct2d):
        made.append(FrozenBatchNormAct2d(5, eps=0.0, apply_act=False))
    for norm in made:
        norm.load_state_dict({name: units[f"fbn.{name}"] for name in names}, strict=False)
        assert torch.equal(norm.eval()(units["fbn.x"]), units["fbn.y"])


def test_a_resnets_stride_is_in_the_first_convolution() -> None:
    with torch.device("meta"):
        body: Any = exact_backbone(fpn_backbone("resnet50", norm="frozen_bn", pretrained=True, download=False)).body
        plain: Any = timm.create_model("resnet50", features_only=True)
    for name, block in body.named_modules():
        if not hasattr(block, "conv3"):
            continue
        stride = (2, 2) if name in ("layer2.0", "layer3.0", "layer4.0") else (1, 1)
        assert (block.conv1.kernel_size, block.conv1.stride) == ((1, 1), stride), name
        assert (block.conv2.kernel_size, block.conv2.stride) == ((3, 3), (1, 1)), name
        if block.downsample is not None:
            assert block.downsample[0].stride == plain.get_submodule(name).downsample[0].stride == stride
    with torch.device("meta"):
        maps = body(torch.zeros(1, 3, 128, 192))
    assert [tuple(level.shape) for level in maps] == [
        (1, 256, 32, 48),
        (1, 512, 16, 24),
        (1, 1024, 8, 12),
        (1, 2048, 4, 6),
    ]


@pytest.mark.parametrize("setting", [None, True, False])
def test_a_recipe_says_where_the_stride_is(setting: bool | None) -> None:
    """And it survives writing and reading."""
    model = model_recipe(backbone="resnet50", stride_in_1x1=setting, norm="bn")
    with torch.device("meta"):
        body: Any = build_detector(model, download=False).backbone.body
    in_1x1 = setting is not False
    for layer in (body.layer2, body.layer3, body.layer4):
        assert (layer[0].conv1.stride, layer[0].conv2.stride) == (((2, 2), (1, 1)) if in_1x1 else ((1, 1), (2, 2)))
    assert recipe_from_dict(recipe_to_dict(Recipe(model=model)), "here").model.stride_in_1x1 is setting


def test_without_the_stride_in_the_1x1_a_resnet_is_timms() -> None:
    body: Any = built(backbone="resnet50", stride_in_1x1=False).backbone.body
    plain: Any = timm.create_model("resnet50", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    plain.load_state_dict(body.state_dict())
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        for ours, theirs in zip(body(image), plain(image), strict=True):
            assert torch.equal(ours, theirs)


def test_other_conventions_have_no_stride_in_the_1x1() -> None:
    with pytest.raises(InputError, match=r"^model\.stride_in_1x1: "):
        build_detector(model_recipe(conventions="torchvision", stride_in_1x1=True), download=False)
    build_detector(model_recipe(conventions="torchvision", stride_in_1x1=False), download=False)


def test_a_resnet_without_three_convolutions_is_left_alone() -> None:
    with torch.device("meta"):
        body: Any = exact_backbone(fpn_backbone("resnet18", norm="frozen_bn", pretrained=True, download=False)).body
    assert body.layer2[0].conv1.stride == (2, 2)
    assert body.layer2[0].conv2.stride == (1, 1)


def deviation(values: Tensor) -> float:
    return float(values.detach().double().pow(2).mean().sqrt())


def largest(values: Tensor) -> float:
    return float(values.detach().abs().max())


def test_random_weights_start_as_the_references() -> None:
    """Facts 6, 8, 9, 20 and the mask head's start (kaiming_normal_, fan out)."""
    found = built(fpn_channels=64, box_representation_size=256, mask_head_channels=64, num_classes=40)
    heads = found.roi_heads
    for layer in (heads.box_head.fc6, heads.box_head.fc7):
        bound = math.sqrt(3 / layer.in_features)  # kaiming_uniform_ with a = 1
        assert largest(layer.weight) == pytest.approx(bound, rel=0.01)
        assert deviation(layer.weight) == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert deviation(heads.box_predictor.cls_score.weight) == pytest.approx(0.01, rel=0.05)
    assert deviation(heads.box_predictor.bbox_pred.weight) == pytest.approx(0.001, rel=0.05)
    head = found.rpn.head
    for layer, error in ((head.conv[0][0], 0.05), (head.cls_logits, 0.3), (head.bbox_pred, 0.15)):
        assert deviation(layer.weight) == pytest.approx(0.01, rel=error)
    for layer in [m for m in found.backbone.fpn.modules() if isinstance(m, nn.Conv2d)]:
        fan_in = layer.in_channels * layer.kernel_size[0] ** 2
        assert largest(layer.weight) == pytest.approx(math.sqrt(3 / fan_in), rel=0.01)
    for layer in [m for m in heads.mask_head.modules() if isinstance(m, nn.Conv2d)]:
        assert deviation(layer.weight) == pytest.approx(math.sqrt(2 / (layer.out_channels * 9)), rel=0.05)
    deconvolution, last = heads.mask_predictor.conv5_mask, heads.mask_predictor.mask_fcn_logits
    # For a transposed convolution torch takes the second axis times the kernel for "out".
    assert deviation(deconvolution.weight) == pytest.approx(math.sqrt(2 / (deconvolution.in_channels * 4)), rel=0.05)
    assert deviation(last.weight) == pytest.approx(math.sqrt(2 / last.out_channels), rel=0.05)
    for layer in [m for m in found.backbone.body.modules() if isinstance(m, nn.Conv2d)]:
        fan_in = layer.in_channels * layer.kernel_size[0] * layer.kernel_size[1]
        assert deviation(layer.weight) == pytest.approx(math.sqrt(2 / fan_in), rel=0.06)
    rest = [found.backbone.fpn, found.rpn, heads]
    biases = {name: value for part in rest for name, value in part.named_parameters() if name.endswith("bias")}
    assert biases
    # roi_mask_predictors.py:18-31 has zeros, too, where torchvision leaves torch's own start.
    assert [name for name, value in biases.items() if value.any()] == []


def test_convolutions_of_a_box_head_start_as_the_references() -> None:
    found = built(box_head_convs=2, box_head_channels=64, head_norm="gn", mask_head_channels=32)
    convolutions = [m for m in found.roi_heads.box_head.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 2
    for layer in convolutions:
        assert layer.bias is None
        assert deviation(layer.weight) == pytest.approx(0.01, rel=0.05)
    (last,) = [m for m in found.roi_heads.box_head.modules() if isinstance(m, nn.Linear)]
    assert largest(last.weight) == pytest.approx(math.sqrt(3 / last.in_features), rel=0.01)


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name.startswith("scratch")])
def test_from_scratch_recipes_have_group_norms_everywhere(name: str) -> None:
    _, found = on_meta(name)
    heads = found.roi_heads
    kinds = [type(layer) for layer in heads.box_head]
    assert kinds[-2:] == [nn.Linear, nn.ReLU]
    for part, count in ((heads.box_head, 4), (heads.mask_head, 4), (found.backbone.fpn, 8)):
        convolutions = [m for m in part.modules() if isinstance(m, nn.Conv2d)]
        norms = [m for m in part.modules() if isinstance(m, nn.GroupNorm)]
        assert len(convolutions) == len(norms) == count
        assert all(layer.bias is None and layer.out_channels == 256 for layer in convolutions)
        assert all((norm.num_groups, norm.eps) == (32, 1e-5) for norm in norms)
    assert sum(isinstance(m, nn.Linear) for m in heads.box_head.modules()) == 1
    body = found.backbone.body
    convolutions = [m for m in body.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in body.modules() if isinstance(m, nn.GroupNorm)]
    assert len(norms) == len(convolutions)
    assert all((norm.num_groups, norm.eps) == (32, 1e-5) for norm in norms)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in found.modules())
    # The reference norms neither the RPN nor the predictors.
    assert not any(isinstance(m, nn.GroupNorm) for part in (found.rpn, heads.mask_predictor) for m in part.modules())


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"in_chans": 1}, r"model\.in_chans must be 3"),
        ({"extra_level": "p6p7"}, r"model\.extra_level must be pool"),
        ({"extra_level": None}, r"model\.extra_level must be pool"),
        ({"rpn_head_convs": 2}, r"model\.rpn_head_convs must be 1"),
        ({"anchor_sizes": [[32, 40]] * 5}, r"model\.anchor_sizes must be one size a level"),
        ({"anchor_sizes": [[32]] * 4}, r"model\.anchor_sizes"),
        ({"conventions": "detectron"}, r"model\.conventions"),
    ],
)
def test_what_the_reference_lacks_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        build_detector(model_recipe(**settings))
    assert "\n" not in str(caught.value)


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(0, 256, (3, *size), generator=generator).float() / 255 for size in sizes]


def same(first: dict[str, Tensor], second: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], atol=tolerance, rtol=0)


def test_a_batch_of_equal_sizes_gives_what_each_image_gives(detector: Any) -> None:
    batch = images((64, 96), (64, 96))
    with torch.no_grad():
        together = detector(batch)
        for image, found in zip(batch, together, strict=True):
            same(detector([image])[0], found, tolerance=1e-3)
    assert all(len(found["scores"]) for found in together)


def test_a_batch_of_sizes_is_each_image_padded_to_the_largest(detector: Any) -> None:
    """Facts 3 and 4: padding is zeros after the mean, and the image's own size bounds its boxes."""
    sizes = [(64, 96), (50, 50), (80, 64)]  # scaled to 64 × 96, 64 × 64 and 80 × 64
    batch = images(*sizes)
    inputs, _ = detector.transform(batch)
    assert inputs.tensors.shape == (3, 3, 96, 96)
    assert inputs.image_sizes == [(64, 96), (64, 64), (80, 64)]
    for one, (height, width) in zip(inputs.tensors, inputs.image_sizes, strict=True):
        assert not one[:, height:].any()
        assert not one[:, :, width:].any()
    with torch.no_grad():
        for found, (height, width) in zip(detector(batch), sizes, strict=True):
            assert len(found["boxes"])
            assert found["masks"].shape[1:] == (1, height, width)
            assert float(found["boxes"].min()) >= 0
            assert float(found["boxes"][:, 0::2].max()) <= width - 1 + 1e-3
            assert float(found["boxes"][:, 1::2].max()) <= height - 1 + 1e-3


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (3, 200)])
def test_odd_images_pass(detector: Any, size: tuple[int, int]) -> None:
    with torch.no_grad():
        (found,) = detector(images(size))
    assert torch.isfinite(found["boxes"]).all()
    assert found["masks"].shape[1:] == (1, *size)


def test_detections_come_by_class_and_their_boxes_are_inclusive(detector: Any) -> None:
    with torch.no_grad():
        (found,) = detector(images((64, 96)))
    assert found["labels"].tolist() == sorted(found["labels"].tolist())
    assert found["scores"].tolist() != sorted(found["scores"].tolist(), reverse=True)
    xywh = detector.boxes_to_xywh(found["boxes"])
    assert torch.equal(xywh[:, 2], found["boxes"][:, 2] - found["boxes"][:, 0] + 1)


def test_it_is_deterministic(detector: Any) -> None:
    (image,) = images((70, 90))
    with torch.no_grad():
        same(detector([image])[0], detector([image.clone()])[0])


def test_training_gives_every_parameter_a_gradient() -> None:
    found = built().train()
    targets = [
        {
            "boxes": torch.tensor([[5.0, 6, 44, 50]]),
            "labels": torch.tensor([2]),
            "polygons": Polygons([[[5.0, 6, 45, 6, 45, 51, 5, 51]]]),
        }
    ]
    losses = found(images((64, 96)), targets)
    assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_mask"}
    torch.stack(list(losses.values())).sum().backward()
    assert all(parameter.grad is not None for parameter in found.parameters())


def test_a_image_too_small_for_any_anchor_gives_losses_of_nothing() -> None:
    """No anchor lies in it, so that none is sampled; the reference's mean of nothing is NaN."""
    found = built(norm="frozen_bn", pretrained=True).train()
    targets = [
        {
            "boxes": torch.tensor([[2.0, 3, 14, 15]]),
            "labels": torch.tensor([1]),
            "polygons": Polygons([[[2.0, 3, 15, 3, 15, 16, 2, 16]]]),
        }
    ]
    losses = found(images((20, 20)), targets)
    assert float(losses["loss_objectness"].detach()) == float(losses["loss_rpn_box_reg"].detach()) == 0
    torch.stack(list(losses.values())).sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in found.parameters() if parameter.grad is not None)


def test_saving_and_loading_keeps_the_conventions(tmp_path: Path) -> None:
    from vovnet.detection.checkpoints.folder import save_detector

    model = model_recipe(norm="frozen_bn", pretrained=True)
    torch.manual_seed(0)
    found: Any = build_detector(model, download=False).eval()
    save_detector(tmp_path, found, model, CATEGORIES)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model"]["conventions"] == "legacy"
    assert config["preprocessing"] == {
        "in_chans": 3,
        "channel_order": "bgr",
        "range": [0, 255],
        "mean": MEAN_BGR,
        "std": [1.0, 1.0, 1.0],
        "min_size": 64,
        "max_size": 96,
    }
    loaded: Any = load_detector(tmp_path)
    assert dataclasses.replace(loaded.recipe, image_mean=None, image_std=None) == model
    assert type(loaded.rpn) is type(found.rpn)
    assert loaded.state_dict().keys() == found.state_dict().keys()
    image = images((50, 70))
    with torch.no_grad():
        same(loaded(image)[0], found(image)[0])
    path = tmp_path / "config.json"
    for key, value in (("channel_order", "rgb"), ("range", [0, 1])):
        wrong = {**config, "preprocessing": {**config["preprocessing"], key: value}}
        path.write_text(json.dumps(wrong))
        with pytest.raises(InputError, match=f"preprocessing.{key}"):
            load_detector(tmp_path)


def test_every_row_of_the_table_has_a_recipe() -> None:
    rows = [
        f"{kind}_rcnn_{body}_FPN_{n}x"
        for kind in ("faster", "mask")
        for body in ("R_50", "R_101", "V_39", "V_57")
        for n in (1, 2)
    ]
    assert set(PUBLISHED) == {*rows, "scratch_mask_rcnn_V_39_FPN_3x_gn", "scratch_mask_rcnn_V_57_FPN_3x_gn"}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_recipe(name: str) -> None:
    recipe, found = on_meta(name)
    model, solver = recipe.model, recipe.solver
    scratch = name.startswith("scratch")
    assert model.conventions == "legacy"
    assert isinstance(found, MaskRCNN if "mask" in name else FasterRCNN)
    backbones = {"R_50": "resnet50", "R_101": "resnet101", "V_39": "vovnet39", "V_57": "vovnet57"}
    assert model.backbone == next(backbone for key, backbone in backbones.items() if f"_{key}_" in name)
    assert (model.norm, model.pretrained) == (("gn", False) if scratch else ("frozen_bn", True))
    schedules = {
        "1x": (90_000, [60_000, 80_000]),
        "2x": (180_000, [120_000, 160_000]),
        "3x": (270_000, [210_000, 250_000]),
    }
    assert (solver.max_iterations, solver.steps) == next(value for key, value in schedules.items() if f"_{key}" in name)
    assert (solver.base_lr, solver.batch_size, solver.reference_batch_size, solver.accumulate) == (0.02, 16, 16, 1)
    assert (solver.momentum, solver.nesterov, solver.weight_decay) == (0.9, False, 1e-4)
    assert (solver.bias_lr_factor, solver.bias_weight_decay, solver.norm_weight_decay) == (2.0, 0.0, None)
    assert (solver.warmup_iterations, solver.schedule, solver.gamma) == (500, "steps", 0.1)
    assert solver.warmup_factor == (pytest.approx(1 / 3, abs=1e-16) if "_R_" in name else 0.01)
    assert (solver.clip_grad_norm, solver.ema, solver.amp) == (None, None, "none")
    assert (recipe.data.flip, recipe.data.train_min_sizes, recipe.data.train_max_size) == (0.5, [800], 1333)
    assert (model.min_size, model.max_size) == (800, 1333)
    assert (model.rpn_pre_nms_top_n_train, model.rpn_post_nms_top_n_train) == (2000, 2000)
    assert (model.rpn_pre_nms_top_n_test, model.rpn_post_nms_top_n_test) == (1000, 1000)
    assert (model.rpn_batch_size_per_image, model.box_batch_size_per_image) == (256, 512)
    assert (model.box_score_thresh, model.box_nms_thresh, model.box_detections_per_img) == (0.05, 0.5, 100)
    assert [Path(source.annotations).name for source in recipe.data.train] == [
        "instances_train2014.json",
        "instances_valminusminival2014.json",
    ]
    assert [Path(source.annotations).name for source in recipe.data.val] == ["instances_minival2014.json"]
    # Everything but frozen norms, which have no parameters, trains.
    assert all(parameter.requires_grad for parameter in found.parameters())
    assert found.roi_heads.box_predictor.cls_score.out_features == 81
    assert found.roi_heads.box_predictor.bbox_pred.out_features == 81 * 4
    assert found.transform.image_mean == pytest.approx(MEAN_BGR)


@pytest.mark.parametrize(
    ("config", "name"), [("frcn_v39", "faster_rcnn_V_39_FPN_2x"), ("frcn_r50", "faster_rcnn_R_50_FPN_2x")]
)
def test_learning_rates_and_groups_equal_the_reference(golden: Path, config: str, name: str) -> None:
    wanted = json.loads((golden / f"lr_{config}.json").read_text())
    recipe, found = on_meta(name)
    conventions = rules_of(recipe.model)
    optimizer = conventions.build_optimizer(found, recipe.solver)
    schedule = conventions.build_schedule(optimizer, recipe.solver)
    weights, biases = optimizer.param_groups
    groups = [group for group in wanted["groups"] if not group["key"].endswith("bias")]
    assert (len(weights["params"]), len(biases["params"])) == (len(groups), len(wanted["groups"]) - len(groups))
    for iteration, rates in wanted["table"].items():
        for base, rate in zip(schedule.base_lrs, (rates["weight"], rates["bias"]), strict=True):
            assert base * learning_rate_factor(recipe.solver, int(iteration)) == rate, iteration


class Published:
    """The reference's networks from its own keys, said again with torch's functions (facts 5 to 9, 20, 23)."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def conv(self, x: Tensor, key: str, **options: Any) -> Tensor:
        name = f"{key}.0" if f"{key}.0.weight" in self.state else key
        weight = self.state[f"{name}.weight"]
        x = F.conv2d(x, weight, self.state.get(f"{name}.bias"), padding=weight.shape[-1] // 2, **options)
        return self.norm(x, f"{key}.1") if name != key else x

    def norm(self, x: Tensor, key: str) -> Tensor:
        weight, bias = self.state[f"{key}.weight"], self.state[f"{key}.bias"]
        if f"{key}.running_var" not in self.state:
            return F.group_norm(x, 32, weight, bias, eps=1e-5)
        scale = weight / self.state[f"{key}.running_var"].sqrt()
        return x * scale[:, None, None] + (bias - self.state[f"{key}.running_mean"] * scale)[:, None, None]

    def vovnet(self, x: Tensor) -> list[Tensor]:
        body = "backbone.body."

        def unit(x: Tensor, key: str, stride: int = 1) -> Tensor:
            return self.norm(self.conv(x, f"{body}{key}/conv", stride=stride), f"{body}{key}/norm").relu()

        for number, stride in ((1, 2), (2, 1), (3, 2)):
            x = unit(x, f"stem.stem_{number}", stride)
        levels = []
        for stage in range(2, 6):
            if stage > 2:
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            block = 1
            while f"{body}stage{stage}.OSA{stage}_{block}.concat.OSA{stage}_{block}_concat/conv.weight" in self.state:
                name = f"OSA{stage}_{block}"
                parts = [x]
                for layer in range(5):
                    parts.append(unit(parts[-1], f"stage{stage}.{name}.layers.{layer}.{name}_{layer}"))
                y = unit(torch.cat(parts, 1), f"stage{stage}.{name}.concat.{name}_concat")
                x = y + x if block > 1 else y
                block += 1
            levels.append(x)
        return levels

    def resnet(self, x: Tensor) -> list[Tensor]:
        body = "backbone.body."
        x = self.norm(F.conv2d(x, self.state[f"{body}stem.conv1.weight"], stride=2, padding=3), f"{body}stem.bn1")
        x = F.max_pool2d(x.relu(), 3, 2, 1)
        levels = []
        for layer in range(1, 5):
            block = 0
            while f"{body}layer{layer}.{block}.conv1.weight" in self.state:
                key = f"{body}layer{layer}.{block}"
                stride = 2 if layer > 1 and block == 0 else 1
                y = self.norm(self.conv(x, f"{key}.conv1", stride=stride), f"{key}.bn1").relu()
                y = self.norm(self.conv(y, f"{key}.conv2"), f"{key}.bn2").relu()
                y = self.norm(self.conv(y, f"{key}.conv3"), f"{key}.bn3")
                if f"{key}.downsample.0.weight" in self.state:
                    short = F.conv2d(x, self.state[f"{key}.downsample.0.weight"], stride=stride)
                    x = self.norm(short, f"{key}.downsample.1")
                x = (x + y).relu()
                block += 1
            levels.append(x)
        return levels

    def pyramid(self, x: Tensor) -> list[Tensor]:
        levels = self.resnet(x) if "backbone.body.stem.conv1.weight" in self.state else self.vovnet(x)
        top = self.conv(levels[3], "backbone.fpn.fpn_inner4")
        found = [self.conv(top, "backbone.fpn.fpn_layer4")]
        for number in (3, 2, 1):
            top = self.conv(levels[number - 1], f"backbone.fpn.fpn_inner{number}") + F.interpolate(top, scale_factor=2)
            found.insert(0, self.conv(top, f"backbone.fpn.fpn_layer{number}"))
        return [*found, found[-1][:, :, ::2, ::2]]

    def boxes(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        head = "roi_heads.box.feature_extractor."
        x = pooled
        for number in range(0, 12, 3):
            if f"{head}xconvs.{number}.weight" in self.state:
                weight = self.state[f"{head}xconvs.{number}.weight"]
                x = self.norm(F.conv2d(x, weight, padding=1), f"{head}xconvs.{number + 1}").relu()
        x = x.flatten(1)
        for name in ("fc6", "fc7"):
            if f"{head}{name}.weight" in self.state:
                x = F.linear(x, self.state[f"{head}{name}.weight"], self.state[f"{head}{name}.bias"]).relu()
        logits, offsets = (f"roi_heads.box.predictor.{name}" for name in ("cls_score", "bbox_pred"))
        return tuple(F.linear(x, self.state[f"{key}.weight"], self.state[f"{key}.bias"]) for key in (logits, offsets))  # type: ignore[return-value]

    def masks(self, pooled: Tensor) -> Tensor:
        x = pooled
        for number in range(1, 5):
            x = self.conv(x, f"roi_heads.mask.feature_extractor.mask_fcn{number}").relu()
        key = "roi_heads.mask.predictor.conv5_mask"
        x = F.conv_transpose2d(x, self.state[f"{key}.weight"], self.state[f"{key}.bias"], stride=2).relu()
        return self.conv(x, "roi_heads.mask.predictor.mask_fcn_logits")


def from_scratch(shapes: dict[str, list[int]]) -> dict[str, list[int]]:
    """The shapes of a published Mask R-CNN turned into those of its from-scratch sister."""
    found = {}
    for key, shape in shapes.items():
        if "running_" in key or ".fc" in key:
            continue
        if re.search(r"fpn_(inner|layer)\d\.|mask_fcn\d\.", key):
            part, leaf = key.rsplit(".", 1)
            if leaf == "weight":
                found |= {f"{part}.0.weight": shape, f"{part}.1.weight": [256], f"{part}.1.bias": [256]}
        else:
            found[key] = shape
    head = "roi_heads.box.feature_extractor."
    for number in range(0, 12, 3):
        found[f"{head}xconvs.{number}.weight"] = [256, 256, 3, 3]
        found |= {f"{head}xconvs.{number + 1}.{leaf}": [256] for leaf in ("weight", "bias")}
    return {**found, f"{head}fc6.weight": [1024, 12544], f"{head}fc6.bias": [1024]}


def drawn(key: str, shape: list[int]) -> Tensor:
    """Of any key, where the rule has none for group norms'."""
    if "cell_anchors" in key:
        stride = 4 * 2 ** int(key[-1])
        return base_anchors(stride, 8 * stride, (0.5, 1.0, 2.0))
    values = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(key.encode())))
    if len(shape) > 1:
        return values * math.sqrt(2 / math.prod(shape[1:]))
    return 0.1 * values + (1 if key.endswith("weight") else 0)


@pytest.mark.parametrize(("config", "scratch"), [("mrcn_r101", False), ("mrcn_v57", True)])
def test_networks_without_golden_numbers_compute_what_the_facts_say(
    config: str, scratch: bool, golden: Path, rule: Any, tmp_path: Path
) -> None:
    from vovnet.hub import convert_checkpoint

    shapes = {key: shape for key, shape, *_ in json.loads((golden / f"keys_{config}.json").read_text())["state_dict"]}
    if scratch:
        state = {key: drawn(key, shape) for key, shape in from_scratch(shapes).items()}
    else:
        state = {key: torch.from_numpy(rule(key, shape)) for key, shape in shapes.items()}
    torch.save({"model": state}, tmp_path / "published.pth")
    told = convert_checkpoint(tmp_path / "published.pth", tmp_path / "detector")
    assert told.name == ("scratch_mask_rcnn_V_57_FPN_3x_gn" if scratch else "mask_rcnn_R_101_FPN_2x")
    detector: Any = load_detector(tmp_path / "detector")
    published = Published(state)
    generator = torch.Generator().manual_seed(0)
    image = 60 * torch.randn(2, 3, 64, 96, generator=generator)
    pooled = {cells: torch.randn(3, 256, cells, cells, generator=generator) for cells in (7, 14)}
    heads = detector.roi_heads
    with torch.no_grad():
        pairs = list(zip(published.pyramid(image), detector.backbone(image).values(), strict=True))
        found = heads.box_predictor(heads.box_head(pooled[7]))
        pairs += list(zip(published.boxes(pooled[7]), found, strict=True))
        pairs.append((published.masks(pooled[14]), heads.mask_predictor(heads.mask_head(pooled[14]))))
    for wanted, got in pairs:
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))
