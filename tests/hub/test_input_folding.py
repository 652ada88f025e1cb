"""A network with another input folded into it computes what it did, in float64, inside the image and at its border."""

from __future__ import annotations

import copy
from typing import Any

import published_forms
import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from vovnet.detection.checkpoints.network_facts import NetworkInput
from vovnet.hub.input_folding import INPUTS, fold_input

IMAGENET = NetworkInput("rgb", [0.0, 1.0], [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = NetworkInput("rgb", [0.0, 1.0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5])
DETECTRON2 = NetworkInput("bgr", [0.0, 255.0], [103.53, 116.28, 123.675], [57.375, 57.12, 58.395])
BGR255 = INPUTS["bgr255"]
NORMS = {"vovnet27_slim": "stem.0.bn", "ese_vovnet19b_slim_dw": "stem.0.bn", "resnet18": "bn1"}


def normalised(image: Tensor, kind: NetworkInput) -> Tensor:
    """What a network is fed of RGB images in 0..1, by the words of the input's fields."""
    ordered = image if kind.channel_order == "rgb" else image.flip(1)
    low, high = kind.range
    shape = (1, 3, 1, 1)
    mean, std = (torch.tensor(values, dtype=image.dtype).view(shape) for values in (kind.mean, kind.std))
    return (low + ordered * (high - low) - mean) / std


def network(name: str, seed: int = 0) -> Any:
    """A network in float64 with norms that do something."""
    return published_forms.network(name, seed, num_classes=10).double()


def folded(model: Any, source: NetworkInput, target: NetworkInput) -> Any:
    other = copy.deepcopy(model)
    other.load_state_dict(fold_input(model.state_dict(), model.pretrained_cfg["first_conv"], source, target))
    return other


def first_maps(model: Any, images: Tensor) -> Tensor:
    conv = model.get_submodule(model.pretrained_cfg["first_conv"])
    return model.get_submodule(NORMS[model.pretrained_cfg["architecture"]])(conv(images))


@pytest.mark.parametrize("source", [IMAGENET, HALF, DETECTRON2], ids=["imagenet", "half", "detectron2"])
@pytest.mark.parametrize("name", NORMS)
def test_the_first_map_is_equal_inside_the_image(name: str, source: NetworkInput) -> None:
    image = torch.rand(2, 3, 33, 46, dtype=torch.float64)
    model = network(name)
    with torch.inference_mode():
        expected = first_maps(model, normalised(image, source))
        found = first_maps(folded(model, source, BGR255), normalised(image, BGR255))
    difference = (found - expected).abs()
    border = 1 if name != "resnet18" else 2
    assert difference[:, :, border:-border, border:-border].max() < 1e-12
    assert difference.max() > 1e-6


@pytest.mark.parametrize("name", NORMS)
def test_the_border_differs_by_the_padding_alone(name: str) -> None:
    """Where the old network pads with the new mean's colour, all of its outputs are those of the new one."""
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    model = network(name)
    usual = normalised(image, IMAGENET)
    black = torch.tensor(BGR255.mean, dtype=torch.float64).flip(0).view(1, 3, 1, 1) / 255
    value = normalised(black, IMAGENET)
    conv = model.get_submodule(model.pretrained_cfg["first_conv"])
    width = conv.padding[0]
    padded = F.pad(usual - value, (width,) * 4) + value
    with torch.inference_mode():
        found = folded(model, IMAGENET, BGR255)(normalised(image, BGR255))
        conv.padding = (0, 0)
        expected = model(padded)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


def test_a_norm_that_trains_is_right_too() -> None:
    """It has the same outputs, and its running mean follows the outputs of the new convolution."""
    image = torch.rand(4, 3, 20, 20, dtype=torch.float64)
    model = network("vovnet27_slim")
    other = folded(model, IMAGENET, BGR255)
    outputs = []
    for net, kind in ((model, IMAGENET), (other, BGR255)):
        net.stem[0].conv.padding = (0, 0)  # no border
        for _ in range(3):
            net.stem[0].train()(normalised(image, kind))
        outputs.append(net.stem[0](normalised(image, kind)))
        net.stem[0].eval()
        outputs.append(net.stem[0](normalised(image, kind)))
    torch.testing.assert_close(outputs[0], outputs[2], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(outputs[1], outputs[3], rtol=1e-12, atol=1e-12)


_levels = st.lists(st.floats(0, 1), min_size=3, max_size=3)
_inputs = st.builds(
    lambda order, high, mean, std: NetworkInput(
        order, [0.0, high], [high * value for value in mean], [high * (0.05 + value) for value in std]
    ),
    st.sampled_from(["rgb", "bgr"]),
    st.sampled_from([1.0, 255.0]),
    _levels,
    _levels,
)


@given(_inputs, _inputs)
@settings(max_examples=30, deadline=None)
def test_any_input_becomes_any_other_and_comes_back(source: NetworkInput, target: NetworkInput) -> None:
    torch.manual_seed(0)
    layer = nn.Sequential()
    layer.conv, layer.bn = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
    layer.eval().double()
    before = {key: value.clone() for key, value in layer.state_dict().items()}
    image = torch.rand(1, 3, 6, 6, dtype=torch.float64)
    with torch.inference_mode():
        expected = layer(normalised(image, source))
        there = fold_input(before, "conv", source, target)
        layer.load_state_dict(there)
        torch.testing.assert_close(layer(normalised(image, target)), expected, rtol=1e-9, atol=1e-9)
    back = fold_input(there, "conv", target, source)
    for key, value in before.items():
        torch.testing.assert_close(back[key], value, rtol=1e-9, atol=1e-9)


def test_types_stay_and_what_was_given_stays() -> None:
    state = timm.create_model("vovnet27_slim", num_classes=0).state_dict()
    before = {key: value.clone() for key, value in state.items()}
    result = fold_input(state, "stem.0.conv", IMAGENET, BGR255)
    assert {key: value.dtype for key, value in result.items()} == {key: v.dtype for key, v in state.items()}
    assert all(torch.equal(state[key], value) for key, value in before.items())
    changed = {key for key, value in result.items() if not torch.equal(value, state[key])}
    assert changed == {"stem.0.conv.weight", "stem.0.bn.running_mean"}
