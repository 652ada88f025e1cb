"""Converters that replace batch norms by class leave our networks' activations alone."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, EvoNorm2dB0, GroupNormAct, convert_sync_batchnorm, freeze_batch_norm_2d
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

import vovnet  # noqa: F401 (registers the networks)
from vovnet.adapters import fpn_backbone
from vovnet.vovnet import ConvNormAct

OURS = ("vovnet27_slim", "ese_vovnet19b", "ese_vovnet39b_all")
SIZES = {
    "stem_chs": (8, 8, 16),
    "stage_conv_chs": (8, 8, 8, 8),
    "stage_out_chs": (16, 16, 24, 32),
    "block_per_stage": (1, 2, 1, 1),
    "layer_per_block": 2,
}


def network(name: str, **arguments: Any) -> nn.Module:
    """Return a feature extractor in evaluation mode, with norms as after a training."""
    torch.manual_seed(0)
    model = timm.create_model(name, features_only=True, **arguments).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    return model


def small(name: str) -> nn.Module:
    return network(name, **{key: list(v) if isinstance(v, tuple) else v for key, v in SIZES.items()})


def maps(model: nn.Module) -> list[Tensor]:
    with torch.inference_mode():
        return model(torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(1)))


def equal(got: list[Tensor], expected: list[Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def torchvisions(model: nn.Module) -> nn.Module:
    """Replace every batch norm by torchvision's frozen one, as detection code does."""
    for name, child in model.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(model, name, frozen)
        else:
            torchvisions(child)
    return model


CONVERTERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torch's synchronised": nn.SyncBatchNorm.convert_sync_batchnorm,
    "timm's synchronised": convert_sync_batchnorm,
    "timm's frozen": freeze_batch_norm_2d,
    "torchvision's frozen": torchvisions,
}


@pytest.mark.parametrize("converter", CONVERTERS)
@pytest.mark.parametrize("name", OURS)
def test_a_converter_changes_no_output(name: str, converter: str) -> None:
    model = small(name)
    expected = maps(model)
    converted = CONVERTERS[converter](copy.deepcopy(model)).eval()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in converted.modules())
    equal(maps(converted), expected)


@pytest.mark.parametrize("name", OURS[:2])
@pytest.mark.parametrize("detector", ["detr", "rt_detr"])
def test_transformers_frozen_norms_change_no_output(detector: str, name: str) -> None:
    from transformers import DetrConfig, DetrForObjectDetection, RTDetrConfig, RTDetrForObjectDetection
    from transformers import TimmBackboneConfig as Backbone

    indices = [1, 2, 3, 4] if detector == "detr" else [2, 3, 4]
    expected = network(name, out_indices=indices)
    backbone = Backbone(backbone=name, use_pretrained_backbone=False, out_indices=indices)
    common = {"backbone_config": backbone, "d_model": 16, "num_queries": 4, "decoder_layers": 1}
    common |= dict.fromkeys(["encoder_attention_heads", "decoder_attention_heads"], 2)
    if detector == "detr":
        model: Any = DetrForObjectDetection(DetrConfig(**common, encoder_layers=1))
        body = model.model.backbone.model
    else:
        channels = expected.feature_info.channels()
        model = RTDetrForObjectDetection(RTDetrConfig(**common, encoder_in_channels=channels, encoder_hidden_dim=16))
        body = model.model.backbone.model._backbone
    assert not any(isinstance(module, nn.BatchNorm2d) for module in body.modules())
    body.load_state_dict(expected.state_dict())
    equal(maps(body.eval()), maps(expected))


def test_timms_own_networks_lose_the_activation_and_fpn_backbone_keeps_it() -> None:
    """The trap that the docs name. Where timm mends it, the docs change."""
    model = small("ese_vovnet39b")
    expected = maps(model)
    assert min(map(torch.min, expected)) == 0
    assert min(map(torch.min, maps(nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))))) < 0
    equal(maps(fpn_backbone(model, norm="sync_bn", out_channels=8).body.eval()), expected)


# Norms that have an activation of their own.


@pytest.mark.parametrize("norm_layer", ["batchnorm2d", nn.BatchNorm2d, BatchNormAct2d])
def test_a_batch_norm_and_its_activation_are_two_modules(norm_layer: Any) -> None:
    layer = ConvNormAct(4, 8, 3, norm_layer=norm_layer, act_layer="silu")
    assert (type(layer.bn), type(layer.act)) == (nn.BatchNorm2d, nn.SiLU)
    assert list(layer.state_dict()) == [
        "conv.weight",
        *(f"bn.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")),
    ]
    other = ConvNormAct(4, 8, 3, norm_layer=lambda channels, **rest: BatchNormAct2d(channels, eps=0.5, **rest))
    assert (type(other.bn), other.bn.eps, type(other.act)) == (nn.BatchNorm2d, 0.5, nn.ReLU)


@pytest.mark.parametrize(
    ("norm_layer", "kind"),
    [(lambda channels, **rest: GroupNormAct(channels, 4, **rest), GroupNormAct), ("evonormb0", EvoNorm2dB0)],
)
def test_a_norm_with_an_activation_of_its_own_gets_no_second_one(norm_layer: Any, kind: type[nn.Module]) -> None:
    layer = ConvNormAct(4, 8, 3, norm_layer=norm_layer, act_layer="leaky_relu").eval()
    assert (type(layer.bn), type(layer.act)) == (kind, nn.Identity)
    x = torch.randn(2, 4, 9, 9)
    assert torch.equal(layer(x), layer.bn(layer.conv(x)))
    model = small_with(norm_layer)
    assert all(type(module.act) is nn.Identity for module in model.modules() if isinstance(module, ConvNormAct))
    model(torch.randn(2, 3, 64, 64)).sum().backward()


def small_with(norm_layer: Any) -> nn.Module:
    return timm.create_model("vovnet27_slim", **SIZES, norm_layer=norm_layer, act_layer="leaky_relu")
