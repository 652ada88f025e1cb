"""Compare the layers that keep less with PyTorch's; count kept bytes; test when activations may be computed again."""

import gc
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from osa_reference import LAYOUTS, draw, kept_bytes, leaf
from torch import Tensor

from vovnet.memory import recompute as recompute_module
from vovnet.memory.recompute import (
    Affine,
    Recompute,
    aggregate_features,
    conv_affine,
    norm_relu,
    recompute_of,
    set_recompute,
)
from vovnet.modules import Geometry

GEOMETRY = Geometry([1, 1], [1, 1], [1, 1], 1)


def gradients(out: Tensor, wanted: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(out, wanted, draw(out.shape, 20, out.dtype))


def check(own: Tensor, plain: Tensor, wanted: list[Tensor], bound: float = 1e-12) -> None:
    pairs = [(own, plain), *zip(gradients(own, wanted), gradients(plain, wanted), strict=True)]
    for one, other in pairs:
        torch.testing.assert_close(one, other, rtol=bound, atol=bound, equal_nan=True)


# Training norms.


def normed(x: Tensor, weight: Tensor | None, bias: Tensor | None, relu: bool = True) -> tuple[Tensor, Tensor]:
    """Return the outputs of our norm and of PyTorch's."""
    own = norm_relu(x, weight, bias, None, None, 0.1, 1e-5, relu=relu)
    plain = F.batch_norm(x, None, None, weight, bias, True, 0.1, 1e-5)
    return own, plain.relu() if relu else plain


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("affine", ["both", "weight", "neither"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_norm(layout: str, affine: str, relu: bool) -> None:
    x = leaf(draw((3, 5, 7, 6), 0), layout)
    weight = None if affine == "neither" else leaf(draw((5,), 1))
    bias = leaf(draw((5,), 2)) if affine == "both" else None
    own, plain = normed(x, weight, bias, relu)
    check(own, plain, [t for t in (x, weight, bias) if t is not None])


@pytest.mark.parametrize("wanted", range(1, 8))
def test_norms_gradients_only_where_they_are_wanted(wanted: int) -> None:
    tensors = [draw((3, 5, 7, 6), 0), draw((5,), 1), draw((5,), 2)]
    for i, tensor in enumerate(tensors):
        tensor.requires_grad_(bool(wanted >> i & 1))
    check(*normed(*tensors), [t for t in tensors if t.requires_grad])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_the_mask_that_is_computed_again_is_the_outputs(layout: str, dtype: torch.dtype) -> None:
    """Half of the channels have one value, as with equal images: their outputs are 0 apart from rounding."""
    torch.manual_seed(0)
    x = leaf(torch.randn(1, 64, 33, 31, dtype=dtype).expand(2, -1, -1, -1), layout)
    with torch.no_grad():
        x[:, ::2] = torch.rand(32, 1, 1, dtype=dtype) * 8
    weight, bias = leaf(torch.randn(64, dtype=dtype)), leaf(torch.zeros(64, dtype=dtype))
    own, plain = normed(x, weight, bias)
    recompute = recompute_of(own)
    assert recompute is not None
    again = recompute.compute(*recompute.tensors)
    assert torch.equal(own, plain)
    assert torch.equal(again > 0, own > 0)
    torch.testing.assert_close(again, own, rtol=1e-5, atol=1e-5)


def test_norm_keeps_its_input_alone() -> None:
    x, weight, bias = leaf(draw((3, 5, 7, 6), 0)), leaf(draw((5,), 1)), leaf(draw((5,), 2))
    with kept_bytes() as kept:
        norm_relu(x, weight, bias, None, None, 0.1, 1e-5, relu=True)
    assert sum(kept.values()) == 8 * (x.numel() + 4 * 5)


def test_norm_updates_the_statistics_as_pytorch() -> None:
    x = draw((3, 5, 7, 6), 0)
    own, plain = ([torch.ones(5).double(), torch.ones(5).double()] for _ in range(2))
    norm_relu(x, None, None, *own, 0.3, 1e-5, relu=True)
    F.batch_norm(x, *plain, None, None, True, 0.3, 1e-5)
    assert all(torch.equal(one, other) for one, other in zip(own, plain, strict=True))


# Activations that are computed again.


def layers() -> tuple[Tensor, list[Tensor], Affine]:
    x = leaf(draw((2, 4, 9, 8), 0))
    weights = [leaf(draw((4, 4, 3, 3), i) / 6) for i in (1, 2, 3)]
    return x, weights, Affine(leaf(draw((4,), 4)), leaf(draw((4,), 5)), True)


def chain(x: Tensor, weights: list[Tensor], affine: Affine, change: Callable[[Tensor], object], *, own: bool) -> Tensor:
    """Compute three convolutions, the first two recomputed, and an aggregation of all their outputs."""
    features = [x]
    for i, weight in enumerate(weights):
        if own:
            out = conv_affine(features[-1], weight, GEOMETRY, affine, recompute=i < 2)
        else:
            out = F.conv2d(features[-1], weight * affine.scale[:, None, None, None], affine.shift, padding=1)
            out = out.clamp(min=0)
        if i < 2:
            with torch.no_grad():
                change(out)
        features.append(out)
    mixing = draw((4, 16, 1, 1), 6)
    if own:
        return aggregate_features(features, mixing, affine, x)
    out = F.conv2d(torch.cat(features, 1), mixing * affine.scale[:, None, None, None], affine.shift)
    return out.relu() + x


def nothing(x: Tensor) -> None:
    pass


@pytest.mark.parametrize("change", [nothing, lambda x: x.add_(1), lambda x: x.fill_(-1.5), lambda x: x[0].zero_()])
def test_a_chain(change: Callable[[Tensor], object]) -> None:
    """An activation that was changed in place is kept with its changed values, not computed again."""
    x, weights, affine = layers()
    wanted = [x, *weights, affine.scale, affine.shift]
    check(*(chain(x, weights, affine, change, own=own) for own in (True, False)), wanted)


@pytest.mark.parametrize("wanted", range(1, 8))
def test_a_chain_of_which_parts_are_frozen(wanted: int) -> None:
    x, weights, affine = layers()
    x = x.detach()
    affine = Affine(affine.scale.detach(), affine.shift.detach(), True)
    for i, weight in enumerate(weights):
        weight.requires_grad_(bool(wanted >> i & 1))
    check(
        *(chain(x, weights, affine, nothing, own=own) for own in (True, False)),
        [weight for weight in weights if weight.requires_grad],
    )


def test_of_a_recomputed_output_only_the_mask_is_kept() -> None:
    x, weights, affine = layers()
    with kept_bytes() as whole:
        chain(x, weights, affine, nothing, own=True)
    with kept_bytes() as first:
        out = conv_affine(x, weights[0], GEOMETRY, affine, recompute=True)
    parameters = 8 * (weights[0].numel() + 4)
    assert sum(first.values()) == 8 * x.numel() + parameters + math.ceil(out.numel() / 8)
    # Two maps: the input and the third convolution's output.
    maps = [size for size in whole.values() if size >= 8 * x.numel()]
    assert maps == [8 * x.numel()] * 2


def test_a_changed_activation_has_no_recompute() -> None:
    x = torch.zeros(3)
    recompute = Recompute(lambda t: t, (x,))
    assert recompute_of(x) is None
    assert set_recompute(x, recompute) is x
    assert recompute_of(x) is recompute
    x.view(1, 3).add_(1)  # through a view
    assert recompute_of(x) is None
    set_recompute(x, recompute)
    assert recompute_of(x) is recompute
    assert recompute_of(x.detach()) is None
    assert recompute_of(x + 0) is None


def test_a_recompute_is_freed_with_its_activation() -> None:
    gc.collect()
    before = len(recompute_module._recomputes)
    x, weights, affine = layers()
    out = chain(x, weights, affine, nothing, own=True)
    gradients(out, weights)
    own, _ = normed(x, None, None)
    assert len(recompute_module._recomputes) == before + 1
    del own
    assert len(recompute_module._recomputes) == before


def test_without_gradients_there_is_no_recompute() -> None:
    x, weights, affine = layers()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert recompute_of(conv_affine(x, weights[0], GEOMETRY, affine, recompute=True)) is None
            assert recompute_of(norm_relu(x, None, None, None, None, 0.1, 1e-5, relu=True)) is None


def test_a_tensor_of_inference_mode_passes() -> None:
    _, weights, _ = layers()
    with torch.inference_mode():
        x = draw((2, 4, 9, 8), 0)
    out = conv_affine(x, weights[0].detach(), GEOMETRY, None, recompute=False)
    assert torch.equal(out, F.conv2d(x, weights[0].detach(), padding=1))
    assert aggregate_features([x], draw((4, 4, 1, 1), 1), None).shape == x.shape


@pytest.mark.parametrize("recomputed", [True, False])
def test_autocast_casts_once(recomputed: bool) -> None:
    """A recomputed activation has autocast's dtype, too; parameters and their gradients stay float32."""
    x, weights, affine = layers()
    x = leaf(x.float())
    weights, affine = [leaf(w.float()) for w in weights], Affine(leaf(affine.scale.float()), affine.shift.float(), True)
    with torch.autocast("cpu", torch.bfloat16):
        first = conv_affine(x, weights[0], GEOMETRY, affine, recompute=recomputed)
        second = conv_affine(first, weights[1], GEOMETRY, affine, recompute=False)
        out = aggregate_features([first, second], draw((4, 8, 1, 1), 6, torch.float32), affine, x)
    assert {first.dtype, second.dtype, out.dtype} == {torch.bfloat16}
    wanted = [x, *weights[:2], affine.scale]
    own = gradients(out, wanted)
    plain = F.conv2d(x, weights[0] * affine.scale[:, None, None, None], affine.shift, padding=1).relu()
    other = F.conv2d(plain, weights[1] * affine.scale[:, None, None, None], affine.shift, padding=1).relu()
    mixing = draw((4, 8, 1, 1), 6, torch.float32) * affine.scale[:, None, None, None]
    expected = F.conv2d(torch.cat([plain, other], 1), mixing, affine.shift).relu() + x
    for one, right in zip((out, *own), (expected, *gradients(expected, wanted)), strict=True):
        assert one is out or one.dtype == torch.float32
        assert float((one - right).detach().norm() / right.detach().norm()) < 0.03
