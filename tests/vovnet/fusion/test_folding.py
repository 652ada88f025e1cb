"""Folded layers against convolution, norm and activation in float64, and the reasons why layers cannot be folded."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from osa_reference import draw
from timm.layers import BatchNormAct2d, FrozenBatchNormAct2d, GroupNormAct, SyncBatchNormAct
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from vovnet.fusion.folding import NotFusable, Settings, concat_layers, fold
from vovnet.fusion.layers import FusedConv
from vovnet.fusion.linear import FusedLinear

SETTINGS = Settings("fp32", "auto")
NORMS: dict[str, Any] = {
    "timm's": lambda: BatchNormAct2d(8),
    "timm's, leaky": lambda: BatchNormAct2d(8, act_layer=nn.LeakyReLU),
    "timm's, without activation": lambda: BatchNormAct2d(8, apply_act=False),
    "timm's, frozen": lambda: FrozenBatchNormAct2d(8),
    "timm's, synchronised": lambda: SyncBatchNormAct(8),
    "timm's, dropping": lambda: BatchNormAct2d(8, drop_layer=nn.Dropout2d),
    "PyTorch's": lambda: nn.BatchNorm2d(8, eps=0.1),
    "PyTorch's, without affine": lambda: nn.BatchNorm2d(8, affine=False),
    "torchvision's": lambda: FrozenBatchNorm2d(8),
    "torchvision's, without epsilon": lambda: FrozenBatchNorm2d(8, eps=0.0),
    "none": lambda: None,
    "nothing": lambda: nn.Sequential(nn.Identity(), nn.Dropout(0.5)),
}


ACTIVATIONS = [None, nn.ReLU(), nn.SiLU(inplace=True)]
"""The activation after the norm. timm's norms contain another one, which comes first."""


def made(name: str, bias: bool) -> tuple[nn.Conv2d, Any]:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(4, 8, 3, padding=1, bias=bias), NORMS[name]()
    if name not in ("none", "nothing"):
        for key, value in norm.state_dict().items():
            if value.is_floating_point():
                value.uniform_(0.5, 1.5)
                if key in ("weight", "bias", "running_mean"):
                    value.sub_(1)
    return conv, norm


@pytest.mark.filterwarnings("ignore:a fused copy in")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(("name", "act"), [(name, act) for name in NORMS for act in ACTIVATIONS])
@torch.no_grad()
def test_equals_the_layers_in_a_row(name: str, bias: bool, act: nn.Module | None) -> None:
    conv, norm = made(name, bias)
    layer = fold(conv, norm, act, SETTINGS)
    assert type(layer) is FusedConv
    x = draw((2, 4, 7, 6), 3)
    row = [copy.deepcopy(part).double().eval() for part in (conv, norm, act) if part is not None]
    expected = nn.Sequential(*row)(x)
    torch.testing.assert_close(copy.deepcopy(layer).double()(x), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer(x.float()).double(), expected, rtol=1e-5, atol=1e-5)
    assert layer.weight.data_ptr() != conv.weight.data_ptr()


def test_the_arithmetic_is_float64s() -> None:
    """The variance and the mean are such that folding in float32 would lose digits."""
    conv, norm = nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1, eps=1e-5)
    conv.weight.data.fill_(1.0)
    conv.bias.data.fill_(1e4)  # type: ignore[union-attr]
    norm.running_mean.fill_(1e4)  # type: ignore[union-attr]
    norm.running_var.fill_(1e-4)  # type: ignore[union-attr]
    layer = fold(conv, norm, None, SETTINGS)
    assert abs(float(layer.bias)) == 0
    assert float(layer.weight) == pytest.approx((1e-4 + 1e-5) ** -0.5, rel=1e-6)


class OwnConv(nn.Conv2d):
    """A subclass that may compute anything."""


class OwnNorm(nn.BatchNorm2d):
    """A subclass that may compute anything."""


def hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda *_: None)
    return module


def statistics_of_each_batch() -> nn.Module:
    return nn.BatchNorm2d(8, track_running_stats=False)


@pytest.mark.parametrize(
    ("conv", "norm", "act", "why"),
    [
        (OwnConv(4, 8, 3), None, None, "its convolution is a OwnConv"),
        (nn.Conv2d(4, 8, 3, padding=1, padding_mode="circular"), None, None, "padding_mode='circular'"),
        (nn.Conv2d(4, 8, 3, padding="same"), None, None, "padding='same'"),
        (nn.Conv2d(4, 8, 3), GroupNormAct(8, 4), None, "its norm is a GroupNormAct"),
        (nn.Conv2d(4, 8, 3), OwnNorm(8), None, "its norm is a OwnNorm"),
        (nn.Conv2d(4, 8, 3), statistics_of_each_batch(), None, "own statistics"),
        (nn.Conv2d(4, 8, 3), BatchNormAct2d(8, drop_layer=nn.FeatureAlphaDropout), None, "has a FeatureAlphaDropout"),
        (hooked(nn.Conv2d(4, 8, 3)), None, None, "its Conv2d has hooks"),
        (nn.Conv2d(4, 8, 3), hooked(nn.BatchNorm2d(8)), None, "its BatchNorm2d has hooks"),
        (nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), hooked(nn.ReLU()), "its ReLU has hooks"),
    ],
)
def test_what_cannot_be_folded_says_why(conv: Any, norm: Any, act: Any, why: str) -> None:
    with pytest.raises(NotFusable, match=re.escape(why)):
        fold(conv, norm, act, SETTINGS)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([nn.Linear(5, 2), nn.Linear(5, 3)], FusedLinear),
        ([nn.Conv2d(5, 2, 1), nn.Conv2d(5, 3, 1)], FusedConv),
        ([nn.Conv2d(5, 2, 3), nn.Conv2d(5, 3, 3)], None),
        ([nn.Conv2d(5, 2, 1), nn.Conv2d(5, 3, 3, padding=1)], None),
        ([nn.Conv2d(5, 2, 1, stride=2), nn.Conv2d(5, 3, 1, stride=2)], None),
        ([nn.Linear(5, 2), nn.Linear(5, 3, bias=False)], None),
        ([nn.Linear(5, 2), hooked(nn.Linear(5, 3))], None),
        ([nn.Conv2d(5, 2, 1), nn.Linear(5, 3)], None),
    ],
)
@torch.no_grad()
def test_layers_of_one_input(layers: list[nn.Module], expected: Any) -> None:
    if expected is None:
        with pytest.raises(NotFusable, match="its predictors"):
            concat_layers(layers, SETTINGS)
        return
    layer = concat_layers(layers, SETTINGS)
    assert type(layer) is expected
    x: Tensor = draw((3, 5), 0, torch.float32)
    x = x[:, :, None, None] if expected is FusedConv else x
    torch.testing.assert_close(layer(x), torch.cat([part(x) for part in layers], dim=1), rtol=1e-5, atol=1e-6)
