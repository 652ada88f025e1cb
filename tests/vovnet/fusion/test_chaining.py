"""Chains of layers in one call: the same as layer by layer; plans are made once for a shape and not used outdated."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from osa_reference import draw

from vovnet.errors import InputError
from vovnet.fusion import base, chaining
from vovnet.fusion.chaining import Chainable, run
from vovnet.fusion.layers import FusedConv, FusedMaxPool2d
from vovnet.modules import Geometry
from vovnet.ops.build import loader


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    """Skip where nothing can be compiled: there are no chains then."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if not loader.cpu_operators():
            pytest.skip("needs the compiled operators for the CPU")
        yield


def conv(seed: int, stride: int = 1, precision: base.Precision = "fp32") -> FusedConv:
    weight = draw((16, 16, 3, 3), seed, torch.float32) / math.sqrt(144)
    geometry = Geometry([stride] * 2, [1, 1], [1, 1], 1)
    return FusedConv(weight, draw((16,), seed + 50, torch.float32), geometry, relu=True, precision=precision)


def image(height: int = 20, width: int = 24) -> torch.Tensor:
    return draw((1, 16, height, width), 9, torch.float32)


layers = st.lists(st.sampled_from(["conv", "strided", "pool"]), min_size=1, max_size=4)


@settings(deadline=None, max_examples=40)
@given(kinds=layers, flags=st.lists(st.booleans(), min_size=5, max_size=5), height=st.integers(16, 40))
def test_a_chain_equals_its_layers_one_by_one(kinds: list[str], flags: list[bool], height: int) -> None:
    made: list[Chainable] = [conv(0)]
    for seed, kind in enumerate(kinds, 1):
        pool = kind == "pool"
        made.append(FusedMaxPool2d([3, 3], [2, 2], [0, 0], True) if pool else conv(seed, 2 if kind == "strided" else 1))
    x, expected = image(height), []
    is_output = [*flags[: len(kinds)], True]
    results = run(made, is_output, x)
    for layer, wanted in zip(made, is_output, strict=True):
        assert layer.output_shape(x.shape) == tuple(layer(x).shape)
        x = layer(x)
        expected += [x] if wanted else []
    assert results is not None
    assert all(torch.equal(one, other) for one, other in zip(results, expected, strict=True))


def test_a_plan_is_made_once_for_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    make = chaining._make_plan

    def counting(*arguments: object) -> object:
        shapes.append(tuple(arguments[2]))  # type: ignore[call-overload]
        return make(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(chaining, "_make_plan", counting)
    chain: list[Chainable] = [conv(0), conv(1)]
    for _ in range(3):
        for height in (20, 22):
            run(chain, [False, True], image(height))
    assert [shape[2] for shape in shapes] == [20, 22]
    run([conv(2), conv(3)], [False, True], image())
    chain[1]._apply(lambda weight: weight * 2)  # any fused layer that moves makes a new generation
    assert torch.equal(run(chain, [False, True], image())[0], chain[1](chain[0](image())))  # type: ignore[index]
    assert len(shapes) == 4


def test_no_more_plans_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chaining, "MOST_SHAPES", 3)
    chain = [conv(0), conv(1)]
    for height in range(10, 20):
        results = run(list(chain), [True, True], image(height))
        assert results is not None
        assert torch.equal(results[1], chain[1](chain[0](image(height))))
    plans = [key for key in chain[0].by_shape if isinstance(key, tuple) and key[0] == "chain"]
    assert len(plans) <= 3


def test_when_the_kernels_do_not_take_a_chain() -> None:
    pair: list[Chainable] = [conv(0), conv(1)]
    assert run(pair, [True, True], image().requires_grad_()) is not None  # no gradients are recorded here
    with torch.enable_grad():
        assert run(pair, [True, True], image().requires_grad_()) is None
    assert run([conv(0), conv(1, precision="bf16")], [True, True], image()) is None
    with pytest.raises(InputError, match="x: expected"):
        run(pair, [True, True], image()[:, :3])
