"""Fused residual blocks of torchvision against the blocks themselves."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from fused_parts import relative_error
from osa_reference import draw
from small_networks import trained
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from vovnet import fuse
from vovnet.fusion.residual import FusedResidualBlock

BOUNDS = {"fp32": 1e-5, "bf16": 4e-2}


def resnet(block: Any, **arguments: Any) -> Any:
    torch.manual_seed(0)
    return trained(ResNet(block, [1, 2, 1, 1], num_classes=5, **arguments))


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_blocks(block: Any, precision: str, way: str) -> None:
    """With and without a convolution in the shortcut, with strides and a dilation."""
    rest = {"replace_stride_with_dilation": [False, False, True]} if block is Bottleneck else {}
    model = resnet(block, **rest)
    fused = fuse(model, precision=precision)  # type: ignore[arg-type]
    x = draw((2, 64, 15, 18), 0, torch.float32)
    with torch.no_grad():
        for name in ("layer1", "layer2", "layer3", "layer4"):
            layer = model.get_submodule(name)
            assert all(type(part) is FusedResidualBlock for part in fused.get_submodule(name))  # type: ignore[attr-defined]
            exact = copy.deepcopy(layer).double()(x.double())
            assert relative_error(fused.get_submodule(name)(x), exact) <= BOUNDS[precision]
            x = exact.float()


@pytest.mark.parametrize("block", [BasicBlock, Bottleneck])
def test_networks(block: Any, way: str) -> None:
    model = resnet(block)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fused = fuse(model)
    assert not [part for part in fused.modules() if isinstance(part, nn.Conv2d | nn.BatchNorm2d)]
    x = draw((2, 3, 64, 48), 0, torch.float32)
    with torch.no_grad():
        assert relative_error(fused(x), copy.deepcopy(model).double()(x.double())) <= 1e-4


@pytest.mark.parametrize("part", ["relu", "bn2", "downsample"])
def test_watched_blocks_keep_their_calls(part: str, way: str) -> None:
    model = resnet(BasicBlock)
    seen: list[str] = []
    model.layer2[0].get_submodule(part).register_forward_hook(lambda *_: seen.append(part))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fused: Any = fuse(model)
    assert type(fused.layer2[0]) is BasicBlock
    x = draw((1, 3, 64, 48), 0, torch.float32)
    with torch.no_grad():
        found = fused(x)
        calls = len(seen)
        assert relative_error(found, model(x).double()) <= 1e-4
    assert calls == len(seen) - calls > 0


def test_gradients_of_the_input(way: str) -> None:
    model = resnet(BasicBlock)
    grads = []
    for one in (model, fuse(model)):
        x = draw((1, 3, 32, 32), 0, torch.float32).requires_grad_()
        one(x).sum().backward()
        assert x.grad is not None
        grads.append(x.grad)
    assert relative_error(grads[1], grads[0].double()) <= 1e-3
