"""Small VoVNets and detectors for tests of whole models, with norms and heads as after a training."""

from __future__ import annotations

import contextlib
from typing import Any

import timm
import torch
from timm.layers import FrozenBatchNormAct2d
from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.ops import FrozenBatchNorm2d

import vovnet  # noqa: F401 (registers our models)
from vovnet.detection import build_detector, load_recipe

SIZES: dict[str, Any] = {
    "stem_chs": [8, 16, 16],
    "stage_conv_chs": [16, 16, 24, 20],
    "stage_out_chs": [32, 40, 48, 56],
    "block_per_stage": [1, 2, 1, 1],
    "layer_per_block": 3,
}
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "ours": ("vovnet27_slim", {}),
    "ours, dilated": ("vovnet27_slim", {"output_stride": 8}),
    "ours, narrow": ("vovnet27_slim", {"stage_conv_chs": [5, 7, 9, 3]}),
    "ours, drop path": ("vovnet27_slim", {"drop_path_rate": 0.5, "drop_rate": 0.5}),
    "ours, swish": ("vovnet27_slim", {"act_layer": "silu"}),
    "vovnet39a": ("vovnet39a", {"residual": False}),
    "vovnet39a, residual": ("vovnet39a", {"residual": True}),
    "ese_vovnet39b": ("ese_vovnet39b", {}),
    "ese_vovnet39b_all": ("ese_vovnet39b_all", {}),
    "ese_vovnet19b_dw": ("ese_vovnet19b_dw", {"block_per_stage": [1, 1, 1, 1]}),
    "eca_vovnet39b": ("eca_vovnet39b", {}),
}
"""Name → timm's name and arguments."""
MODEL = {
    "backbone": "vovnet27_slim",
    "backbone_args": "{" + ", ".join(f"{key}: {value}" for key, value in SIZES.items()) + "}",
    "pretrained": "false",
    "norm": "bn",
    "min_size": "96",
    "max_size": "160",
    "num_classes": "4",
    "fpn_channels": "32",
    "box_representation_size": "48",
    "rpn_post_nms_top_n_test": "100",
    "box_detections_per_img": "30",
}
"""The ``model`` part of a recipe."""


def network(name: str = "ours", **arguments: Any) -> Any:
    """Return a classifier of five classes, or with ``features_only=True`` an extractor, in evaluation mode."""
    known, own = NETWORKS[name]
    torch.manual_seed(0)
    what = {} if arguments.get("features_only") else {"num_classes": 5}
    return trained(timm.create_model(known, **{**SIZES, **own, **what, **arguments}))


def detector(recipe: str = "mask_rcnn_vovnet39_fpn", **model: str) -> FasterRCNN:
    """Return a small detector in evaluation mode that finds many objects with high scores."""
    torch.manual_seed(0)
    overrides = [f"model.{key}={value}" for key, value in (MODEL | model).items()]
    made: Any = trained(build_detector(load_recipe(recipe, overrides), download=False))
    for name, deviation in _DEVIATIONS.items():
        with contextlib.suppress(AttributeError):
            nn.init.normal_(made.get_submodule(name).weight, std=deviation)
    if hasattr(made, "head"):
        _see_objects(made.head)
    return made  # type: ignore[no-any-return]


@torch.no_grad()
def _see_objects(head: Any) -> None:
    """Let the head of a one-stage detector find many objects, and no background, as a trained one."""
    for part in (head.classification_head, head.regression_head):
        for layer in part.conv.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    bias = head.classification_head.cls_logits.bias
    bias.zero_().view(-1, head.classification_head.num_classes)[:, 0] = -100


_DEVIATIONS = {
    "rpn.head.cls_logits": 0.1,
    "rpn.head.bbox_pred": 0.05,
    "roi_heads.box_predictor.cls_score": 0.2,
    "roi_heads.box_predictor.bbox_pred": 0.02,
    "head.classification_head.cls_logits": 0.005,
    "head.regression_head.bbox_reg": 0.0005,
}


def trained(model: nn.Module) -> nn.Module:
    """Give norms values as after a training, of both signs; return the model in evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNormAct2d | FrozenBatchNorm2d | nn.GroupNorm):
            for key, value in module.state_dict().items():
                if value.is_floating_point():
                    low = -0.5 if key in ("bias", "running_mean") else 0.5
                    value.uniform_(low, low + 1)
            module.weight.detach()[::3].neg_()
    return model.eval()
