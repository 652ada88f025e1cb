"""Convolutions with norms and ReLUs wherever they stand: folded where that is safe, and left alone elsewhere."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from fused_parts import relative_error
from osa_reference import draw
from small_networks import trained
from torch import Tensor, nn

from vovnet import fuse
from vovnet.fusion.layers import FusedConv


def conv(inputs: int = 6, outputs: int = 6, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, padding=size // 2)


class ByHand(nn.Module):
    """Calls its layers by hand, and one ReLU twice; ``forward`` of subclasses differs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1, self.conv2, self.norm2 = conv(), nn.BatchNorm2d(6), conv(), nn.BatchNorm2d(6)
        self.relu = nn.ReLU()
        self.last = conv(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.norm1(self.conv1(x)))
        out = self.relu(self.norm2(self.conv2(out)) + x)
        return self.last(out)  # type: ignore[no-any-return]


class SequenceInForward(ByHand):
    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.Sequential(self.conv1, self.norm1, self.relu)(x))  # type: ignore[no-any-return]


class Functional(ByHand):
    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        out = F.relu(self.norm1(self.conv1(F.interpolate(x, scale_factor=2.0))), inplace=True)
        return self.last(out if skip is None else out + skip)  # type: ignore[no-any-return]


class InLists(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([conv(), conv()])
        self.norms = nn.ModuleDict({"a": nn.BatchNorm2d(6), "b": nn.BatchNorm2d(6)})

    def forward(self, x: Tensor) -> Tensor:
        for layer, norm in zip(self.convs, self.norms.values(), strict=True):
            x = norm(layer(x)).relu()
        return x


class TwiceUsed(ByHand):
    """The norm is not all that takes the convolution's output."""

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(x)
        return self.last(self.norm1(out) + out)  # type: ignore[no-any-return]


class TwiceCalled(ByHand):
    """One convolution stands before two norms."""

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm1(self.conv1(x)) + self.norm2(self.conv1(x * 2)))  # type: ignore[no-any-return]


class ReadsTheConvolution(ByHand):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm1(self.conv1(x)) * self.conv1.stride[0]  # type: ignore[no-any-return]


class ReadsTheWeight(ByHand):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm1(self.conv1(x)) + F.conv2d(x, self.conv1.weight, padding=1)  # type: ignore[no-any-return]


class DependsOnAnArgument(ByHand):
    """What follows the convolution depends on an argument that is seldom given."""

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        out = self.conv1(x)
        return self.norm1(out) if more is None else self.norm2(out)  # type: ignore[no-any-return]


class DependsOnTheImage(ByHand):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm1(self.conv1(x)) if float(x.sum()) > 1e9 else self.conv1(x)  # type: ignore[no-any-return]


class Remembers(ByHand):
    """Counts its calls and keeps what it computed."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))
        self.seen: list[Tensor] = []
        self.out: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.out = self.relu(self.norm1(self.conv1(x)))
        self.seen.append(self.out)
        return self.out


class OtherNames(ByHand):
    """Calls its layers by names that come later."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3, self.norm3 = self.conv1, self.norm2

    def forward(self, x: Tensor) -> Tensor:
        return self.norm3(self.conv2(x)) + self.norm1(self.conv3(x))  # type: ignore[no-any-return]


class CallsIntoASequence(nn.Module):
    """Takes a feature map from the middle of a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(conv(), nn.BatchNorm2d(6), nn.ReLU(), conv(), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        first = self.features[0](x)
        for layer in list(self.features)[1:]:
            x = layer(first)
        return x + first


class OfNumbers(nn.Sequential):
    """Has no forward of its own."""


def shared_in_two_sequences() -> nn.Module:
    """One convolution, with another norm in each place."""
    layer, relu = conv(), nn.ReLU()
    return nn.Sequential(
        nn.Sequential(layer, nn.BatchNorm2d(6), relu), nn.Sequential(layer, nn.BatchNorm2d(6), relu), conv()
    )


def tied_weights() -> nn.Module:
    model = nn.Sequential(conv(), nn.BatchNorm2d(6), conv(), nn.BatchNorm2d(6), nn.ReLU())
    model[2].weight = model[0].weight  # type: ignore[assignment]
    return model


def with_a_hook() -> nn.Module:
    model = nn.Sequential(conv(), nn.BatchNorm2d(6), nn.ReLU(), conv())
    model[1].register_forward_hook(lambda module, inputs, out: out * 2)
    return model


def with_own_forward() -> nn.Module:
    model = ByHand()
    model.forward = lambda x: model.last(model.conv1(x))  # type: ignore[method-assign]
    return model


CASES: dict[str, tuple[Callable[[], nn.Module], int, int, int]] = {
    # name: maker; numbers of fused convolutions, and of convolutions and norms that are left
    "sequence": (lambda: nn.Sequential(conv(), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(), conv()), 2, 0, 0),
    "sequence without norms": (lambda: nn.Sequential(conv(), nn.ReLU(), conv(), nn.Tanh()), 2, 0, 0),
    "another sequence": (lambda: OfNumbers(conv(), nn.BatchNorm2d(6), nn.SiLU()), 1, 0, 0),
    "group norm": (lambda: nn.Sequential(conv(), nn.GroupNorm(2, 6), nn.ReLU(), conv()), 2, 0, 0),
    "norm first": (lambda: nn.Sequential(nn.BatchNorm2d(6), nn.ReLU(), conv()), 1, 0, 1),
    "dilation, groups": (lambda: nn.Sequential(nn.Conv2d(6, 6, 3, groups=2, dilation=2), nn.BatchNorm2d(6)), 1, 0, 0),
    "by hand": (ByHand, 3, 0, 0),
    "sequence made in forward": (SequenceInForward, 2, 1, 1),
    "functional": (Functional, 2, 1, 1),
    "lists": (InLists, 2, 0, 0),
    "used twice": (TwiceUsed, 2, 1, 2),
    "called twice": (TwiceCalled, 1, 2, 2),
    "reads a convolution": (ReadsTheConvolution, 0, 3, 2),
    "reads a weight": (ReadsTheWeight, 0, 3, 2),
    "an argument": (DependsOnAnArgument, 1, 2, 2),
    "depends on the image": (DependsOnTheImage, 0, 3, 2),
    "remembers": (Remembers, 1, 2, 1),
    "other names": (OtherNames, 0, 3, 2),
    "calls into a sequence": (CallsIntoASequence, 0, 2, 1),
    "shared": (shared_in_two_sequences, 3, 0, 0),
    "tied": (tied_weights, 2, 0, 0),
    "hook": (with_a_hook, 1, 1, 1),
    "own forward": (with_own_forward, 0, 3, 2),
}


def quietly_fused(model: nn.Module, precision: str = "fp32") -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is left is counted here
        return fuse(model, precision=precision)  # type: ignore[arg-type]


def count(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(isinstance(part, kind) for part in model.modules())


@pytest.mark.parametrize("case", CASES)
def test_what_is_folded(case: str, way: str) -> None:
    make, fused_convs, convs, norms = CASES[case]
    torch.manual_seed(0)
    model = trained(make())
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fused = quietly_fused(model)
    assert (count(fused, FusedConv), count(fused, nn.Conv2d), count(fused, nn.BatchNorm2d)) == (
        fused_convs,
        convs,
        norms,
    )
    x = draw((2, 6, 13, 10), 0, torch.float32)
    with torch.no_grad():
        exact = model(x) if case == "own forward" else copy.deepcopy(model).double()(x.double())
        assert relative_error(fused(x), exact) <= 1e-5
        assert relative_error(copy.deepcopy(fused)(x), exact) <= 1e-5
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert count(model, FusedConv) == 0


def test_nothing_is_left_of_following_the_code() -> None:
    fused = quietly_fused(trained(Remembers()))
    assert (fused.out, fused.seen, float(fused.calls)) == (None, [], 0)


def test_an_optional_argument(way: str) -> None:
    model = trained(DependsOnAnArgument())
    x = draw((2, 6, 13, 10), 0, torch.float32)
    with torch.no_grad():
        torch.testing.assert_close(quietly_fused(model)(x, x), model(x, x))


def test_predictors_compute_in_float32(way: str) -> None:
    """The last convolution takes bfloat16 maps and rounds nothing."""
    torch.manual_seed(0)
    fused = quietly_fused(trained(nn.Sequential(conv(6, 16), nn.BatchNorm2d(16), nn.ReLU(), conv(16, 3))), "bf16")
    x = draw((2, 6, 13, 10), 0, torch.float32)
    with torch.no_grad():
        middle = fused[0](x)
        assert middle.dtype == torch.bfloat16
        assert fused(x).dtype == torch.float32
        exact = F.conv2d(middle.double(), fused[3].weight.double(), fused[3].bias.double(), padding=1)
        assert relative_error(fused(x), exact) <= 1e-6


def deeplab() -> nn.Module:
    return torchvision.models.segmentation.deeplabv3_mobilenet_v3_large(
        weights=None, weights_backbone=None, num_classes=3, aux_loss=True
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    # name: maker, and the number of norms that are left (the ResNet's bn1 stands behind a whole sequence)
    "torchvision's DeepLab": (deeplab, 0),
    "timm's ResNet": (lambda: timm.create_model("resnet10t", num_classes=5), 1),
    "timm's features": (lambda: timm.create_model("mobilenetv3_small_050", features_only=True), 0),
}


@pytest.mark.parametrize("name", MODELS)
def test_models(name: str, way: str) -> None:
    make, norms = MODELS[name]
    torch.manual_seed(0)
    model = trained(make())
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        fused: Any = fuse(model)
    assert count(fused, nn.BatchNorm2d) == norms
    x = draw((1, 3, 64, 96), 0, torch.float32)
    with torch.no_grad():
        got, exact = fused(x), copy.deepcopy(model).double()(x.double())
    for one, other in zip(tensors(got), tensors(exact), strict=True):
        assert relative_error(one, other) <= 1e-4


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [x for part in (value.values() if isinstance(value, dict) else value) for x in tensors(part)]


def test_one_image_without_a_batch_is_taken_where_pytorch_takes_it() -> None:
    model = nn.Sequential(conv(3, 16), nn.ReLU(), conv(16, 16), nn.ReLU(), nn.MaxPool2d(2, 2), conv(16, 8)).eval()
    fused, x = quietly_fused(model), draw((3, 12, 10), 4, torch.float32)
    assert count(fused, FusedConv) == 3
    with torch.no_grad():
        expected, found = model(x), fused(x)
        assert found.shape == expected.shape
        assert relative_error(found, expected) < 1e-5
        assert relative_error(fused(x[None]), expected[None]) < 1e-5  # and afterwards with a batch
    with pytest.raises(ValueError, match=r"x: expected|3"):
        fused(x[:2])
