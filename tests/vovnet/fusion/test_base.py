"""What all fused layers share: packed weights, refusals, and when the kernels are used."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import dual_level, make_dual

from vovnet.errors import InputError
from vovnet.fusion import base
from vovnet.fusion.base import FusedLayer, needs_gradient, supported


class Layer(FusedLayer):
    """A layer with a weight and nothing else."""

    def __init__(self, precision: base.Precision = "fp32", dtype: torch.dtype = torch.float32) -> None:
        super().__init__(precision, "auto")
        self.weight = nn.Parameter(torch.ones(2, 3, dtype=dtype), requires_grad=False)
        self.bias = None


def test_threads_make_a_cached_tensor_once() -> None:
    layer, made = Layer(), []
    barrier = threading.Barrier(4)

    def make() -> Tensor:
        made.append(1)
        return layer.weight * 2

    def call() -> None:
        barrier.wait()
        layer.cached("twice", make)

    threads = [threading.Thread(target=call) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_what_is_cached_stays_with_the_layer_and_goes_when_it_moves() -> None:
    layer = Layer()
    with torch.inference_mode():
        assert not layer.cached("twice", lambda: layer.weight * 2).is_inference()
    layer.by_shape[1] = 2
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert not other.packed
        assert not other.by_shape
        assert torch.equal(other.weight, layer.weight)
    before = base.generation
    layer.float()
    assert not layer.packed
    assert not layer.by_shape
    assert base.generation == before + 1


def test_it_neither_trains_nor_loads() -> None:
    layer = Layer()
    assert not layer.training
    assert layer.eval() is layer
    with pytest.raises(InputError, match=r"train\(\)"):
        layer.train()
    with pytest.raises(InputError, match=r"load_state_dict\(\)"):
        layer.load_state_dict({"weight": torch.zeros(2, 3)})


@pytest.mark.parametrize(
    ("precision", "given", "computed"),
    [
        ("fp32", torch.float32, torch.float32),
        ("bf16", torch.float32, torch.bfloat16),
        ("bf16", torch.bfloat16, torch.bfloat16),
        ("fp32", torch.bfloat16, None),
        ("bf16", torch.float16, None),
        ("fp32", torch.float64, None),
    ],
)
def test_types_of_the_input(precision: base.Precision, given: torch.dtype, computed: torch.dtype | None) -> None:
    layer, x = Layer(precision), torch.zeros(1, 3, dtype=given)
    if computed is None:
        with pytest.raises(InputError, match=r"^x: expected torch.float32.*, got"):
            layer.compute_dtype(x)
    else:
        assert layer.compute_dtype(x) == computed
    with pytest.raises(InputError, match="x: expected it on cpu"):
        layer.compute_dtype(x.to("meta"))


def test_weights_in_the_type_of_the_maps() -> None:
    assert Layer().cast_weight(torch.bfloat16).dtype == torch.float32
    layer = Layer("bf16")
    assert layer.cast_weight(torch.bfloat16).dtype == torch.bfloat16
    assert layer.cast_weight(torch.bfloat16) is layer.cast_weight(torch.bfloat16)
    layer.weight.requires_grad_()
    assert layer.requires_grad
    assert layer.cast_weight(torch.bfloat16) is not layer.cast_weight(torch.bfloat16)


def test_gradients_in_both_directions_are_seen() -> None:
    x = torch.zeros(2)
    assert not needs_gradient(x)
    assert needs_gradient(x.clone().requires_grad_())
    with torch.no_grad():
        assert not needs_gradient(x.clone().requires_grad_())
    with dual_level():
        assert needs_gradient(make_dual(x, torch.ones(2)))


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(1, 3, 4, 4, dtype=torch.float64),
        torch.zeros(0, 3, 4, 4),
        torch.zeros(1, 3, 4, 4, device="meta"),
        torch.zeros(1, 3, 4, 4, requires_grad=True),
    ],
)
def test_maps_that_the_kernels_do_not_take(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "kernels_available", lambda: True)
    assert supported(torch.zeros(1, 3, 4, 4))
    assert not supported(x)
    assert not supported(torch.zeros(1, 3, 4, 4), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not supported(torch.zeros(1, 3, 4, 4))
