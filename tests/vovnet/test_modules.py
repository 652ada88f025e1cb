"""Facts about modules that decide whether they are replaced."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.layers import DropBlock2d, DropPath
from torch import nn

from vovnet.modules import conv_geometry, has_hooks, has_hooks_or_patched_forward, is_identity_in_eval, to_pair

HOOKS: dict[str, Callable[[nn.Module], object]] = {
    "forward": lambda module: module.register_forward_hook(lambda *_: None),
    "forward pre": lambda module: module.register_forward_pre_hook(lambda *_: None),
    "backward": lambda module: module.register_full_backward_hook(lambda *_: None),
    "backward pre": lambda module: module.register_full_backward_pre_hook(lambda *_: None),
}


def hooked(module: nn.Module) -> nn.Module:
    HOOKS["forward"](module)
    return module


@pytest.mark.parametrize("kind", HOOKS)
def test_every_kind_of_hook_is_seen(kind: str) -> None:
    module = nn.Conv2d(2, 3, 1)
    assert not has_hooks(module)
    handle: Any = HOOKS[kind](module)
    assert has_hooks(module)
    assert has_hooks_or_patched_forward(module)
    handle.remove()
    assert not has_hooks_or_patched_forward(module)


def test_a_patched_forward_is_no_hook_but_is_seen() -> None:
    module: Any = nn.ReLU()
    module.forward = lambda x: x
    assert not has_hooks(module)
    assert has_hooks_or_patched_forward(module)


def test_a_hook_of_a_child_is_not_the_parents() -> None:
    assert not has_hooks(nn.Sequential(hooked(nn.ReLU())))


@pytest.mark.parametrize(
    "module", [None, nn.Identity(), DropPath(0.5), DropBlock2d(), nn.Dropout(), nn.Sequential(nn.Dropout2d())]
)
def test_identities_in_evaluation(module: Any) -> None:
    assert is_identity_in_eval(module)
    if module is not None:
        x = torch.rand(2, 3, 4, 4)
        assert torch.equal(module.eval()(x), x)


@pytest.mark.parametrize(
    "module", [nn.ReLU(), nn.Sequential(nn.ReLU()), hooked(nn.Identity()), hooked(nn.Sequential()), nn.AlphaDropout()]
)
def test_what_is_not_taken_for_an_identity(module: nn.Module) -> None:
    assert not is_identity_in_eval(module)


sides = st.integers(1, 3)


@settings(deadline=None, max_examples=50)
@given(
    kernel=st.tuples(sides, sides),
    stride=sides | st.tuples(sides, sides),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    groups=st.sampled_from([1, 2]),
)
def test_a_geometry_has_the_order_of_conv2d(
    kernel: tuple[int, int], stride: int | tuple[int, int], padding: int, dilation: int, groups: int
) -> None:
    conv = nn.Conv2d(2, 4, kernel, stride, padding, dilation, groups)
    x = torch.rand(1, 2, 9, 8)
    assert torch.equal(F.conv2d(x, conv.weight, conv.bias, *conv_geometry(conv)), conv(x))


def test_pairs() -> None:
    assert to_pair(3) == [3, 3]
    assert to_pair((1, 2)) == [1, 2]
    assert to_pair([4, 5]) == [4, 5]
