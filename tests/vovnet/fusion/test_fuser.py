"""Fused copies return the outputs of their models, and fusing does not change the model."""

from __future__ import annotations

import copy
import io
import multiprocessing
import os
import pickle
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import timm
import torch
from osa_reference import draw
from small_networks import NETWORKS, network, trained
from timm.layers import ConvNormAct, GroupNormAct, convert_sync_batchnorm, freeze_batch_norm_2d
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import vovnet
from vovnet import fuse, memory_efficient
from vovnet.errors import InputError
from vovnet.fusion import base
from vovnet.fusion.layers import FusedConv, FusedMaxPool2d, FusedOsaBlock
from vovnet.ops.build import loader

BOUND = 1e-5
"""Largest error relative to the largest value: float32 in another order, and with Winograd's algorithm."""


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    """Turn off gradients, and turn unexpected warnings into errors."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", "Guards may run slower on Python 3.13.0")
        yield


def image(batch: int = 2, height: int = 69, width: int = 58, dtype: torch.dtype = torch.float32) -> Tensor:
    return draw((batch, 3, height, width), 1, dtype)


def outputs(out: Any) -> list[Tensor]:
    if isinstance(out, Tensor):
        return [out]
    return [part for entry in (out.values() if isinstance(out, dict) else out) for part in outputs(entry)]


def check_equal(fused: Any, model: Any, x: Tensor, bound: float = BOUND) -> None:
    """Check that outputs have the model's types and shapes, and the values of the model in float64."""
    got, plain = fused(x), model(x)
    exact = copy.deepcopy(model).double()(x.double())
    assert type(got) is type(plain)
    if isinstance(got, dict):
        assert list(got) == list(plain)
    for one, other, true in zip(outputs(got), outputs(plain), outputs(exact), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert not one.requires_grad
        assert float((one - true).abs().max()) <= bound * float(true.abs().max())


def of_type(model: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, kind)]


@pytest.mark.parametrize("name", NETWORKS)
def test_classifiers(name: str, way: str) -> None:
    model = network(name)
    check_equal(fuse(model), model, image())


@pytest.mark.parametrize("name", NETWORKS)
def test_features(name: str, way: str) -> None:
    model = network(name, features_only=True)
    fused = fuse(model)
    check_equal(fused, model, image())
    assert fused.feature_info.channels() == model.feature_info.channels()  # type: ignore[union-attr, operator]


@pytest.mark.parametrize("cls", ["dict", "list", "getter"])
def test_every_kind_of_extractor(cls: str, way: str) -> None:
    model = network("ours", features_only=True, feature_cls=cls, out_indices=(1, 3))
    check_equal(fuse(model), model, image())


def test_an_extractor_by_hooks(way: str) -> None:
    model = network("ours", features_only=True, feature_cls="hook")
    with pytest.warns(UserWarning, match=r"left as they are: stem_1 \(hooks"):
        fused = fuse(model)
    check_equal(fused, model, image())
    check_equal(fused, model, image())


@pytest.mark.parametrize("algorithm", ["auto", "direct"])
@pytest.mark.parametrize("size", [(1, 33, 33), (3, 34, 97), (2, 41, 160)])
def test_sizes(size: tuple[int, int, int], algorithm: str, way: str) -> None:
    model = network("ours")
    check_equal(fuse(model, algorithm=algorithm), model, image(*size))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_layouts(layout: torch.memory_format, way: str) -> None:
    model = network("ours", features_only=True)
    fused = fuse(model)
    check_equal(fused, model, image().contiguous(memory_format=layout))
    check_equal(fused, model, image(2, 116, 138)[:, :, ::2, ::2])
    for out in fused(image()):
        assert out.is_contiguous(memory_format=torch.channels_last)


def test_images_that_are_too_small_fail_as_in_the_model(way: str) -> None:
    model = network("ours")
    for net in (model, fuse(model)):
        with pytest.raises(RuntimeError):
            net(image(1, 4, 4))


def test_no_image(way: str) -> None:
    model = network("ours")
    x = image()[:0]
    assert fuse(model)(x).shape == model(x).shape == (0, 5)


def without_affine(model: nn.Module) -> nn.Module:
    for norm in of_type(model, nn.BatchNorm2d):
        norm.weight = norm.bias = None
    return model


NORMS: dict[str, Any] = {
    "frozen": freeze_batch_norm_2d,
    "synchronised": convert_sync_batchnorm,
    "without affine": without_affine,
    "memory_efficient": memory_efficient,
}


@pytest.mark.parametrize("name", ["ours", "ese_vovnet39b"])
@pytest.mark.parametrize("norm", NORMS)
def test_norms(norm: str, name: str, way: str) -> None:
    model = NORMS[norm](network(name)).eval()
    fused = fuse(model)
    check_equal(fused, model, image())
    assert len(of_type(fused, FusedOsaBlock)) == 5


def test_what_becomes_of_the_parts() -> None:
    fused = fuse(network("ours"))
    assert [type(layer) for layer in fused.stem] == [FusedConv] * 3  # type: ignore[union-attr]
    assert len(of_type(fused, FusedOsaBlock)) == 5
    assert len(of_type(fused, FusedMaxPool2d)) == 3
    assert not of_type(fused, nn.BatchNorm2d)
    assert not of_type(fused, nn.MaxPool2d)
    assert all(block.has_kernel for block in of_type(fused, FusedOsaBlock))


def test_the_model_is_left_as_it_was() -> None:
    model = network("ours").train()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    modules = list(model.named_modules())
    with pytest.warns(UserWarning, match="in training mode"):
        fused = fuse(model)
    own = {value.untyped_storage().data_ptr() for value in model.state_dict().values()}
    assert own.isdisjoint(value.untyped_storage().data_ptr() for value in fused.state_dict().values())
    for value in fused.parameters():
        value.zero_()
    assert list(model.named_modules()) == modules
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key])


def test_the_copy_keeps_attributes_and_does_not_train(way: str) -> None:
    model = network("ours")
    model.recipe = {"any": "thing"}
    fused: Any = fuse(model)
    assert type(fused) is type(model)
    assert fused.recipe == model.recipe
    assert fused.recipe is not model.recipe
    for name in ("num_classes", "num_features", "feature_info", "pretrained_cfg", "in_chans"):
        assert getattr(fused, name) == getattr(model, name)
    assert not any(module.training for module in fused.modules())
    assert not any(parameter.requires_grad for parameter in fused.parameters())
    with pytest.raises(InputError, match="fuse it again"):
        fused.train()
    with pytest.raises(InputError, match="load into the original"):
        fused.load_state_dict(model.state_dict())
    with pytest.raises(InputError, match="load into the original"):
        fused.load_state_dict(fused.state_dict())


def test_a_model_in_training_mode_is_taken_as_in_evaluation(way: str) -> None:
    model = network("ours, drop path").train()
    with pytest.warns(UserWarning, match="in training mode") as caught:
        fused = fuse(model)
    assert len(caught) == 1
    check_equal(fused, model.eval(), image())


def test_a_fused_copy_can_be_fused(way: str) -> None:
    model = network("ours")
    check_equal(fuse(fuse(model)), model, image())
    for changes in ({"precision": "bf16"}, {"algorithm": "direct"}):
        with pytest.raises(InputError, match="model: it is fused already, with precision='fp32' and algorithm='auto'"):
            fuse(fuse(model), **changes)


def test_a_copy_made_in_inference_mode_lets_gradients_through(way: str) -> None:
    with torch.inference_mode():
        fused = fuse(network("ours"))
    x = image().requires_grad_()
    with torch.enable_grad():
        fused(x).sum().backward()
    assert x.grad is not None


def _hook(model: Any) -> None:
    model.stages[1].blocks[0].conv_mid[1].register_forward_hook(lambda *_: None)


def _hook_inside(model: Any) -> None:
    model.stages[1].blocks[0].conv_mid[1].bn.register_forward_pre_hook(lambda *_: None)


def _hook_block(model: Any) -> None:
    model.stages[1].blocks[0].register_forward_hook(lambda *_: None)


def _pruning(model: Any) -> None:
    prune.l1_unstructured(model.stages[1].blocks[0].conv_mid[1].conv, "weight", 0.5)
    model.stages[1].blocks[0].conv_mid[1].conv.weight = model.stages[1].blocks[0].conv_mid[1].conv.weight.detach()


def _weight_norm(model: Any) -> None:
    parametrizations.weight_norm(model.stages[1].blocks[0].conv_mid[1].conv)


def _group_norm(model: Any) -> None:
    model.stages[1].blocks[0].conv_mid[1].bn = GroupNormAct(16, 4)


def _batch_statistics(model: Any) -> None:
    norm = model.stages[1].blocks[0].conv_mid[1].bn
    norm.running_mean = norm.running_var = None


def _reflecting(model: Any) -> None:
    model.stages[1].blocks[0].conv_mid[1].conv.padding_mode = "reflect"
    model.stages[1].blocks[0].conv_mid[1].conv._reversed_padding_repeated_twice = [1, 1, 1, 1]


def _own_forward(model: Any) -> None:
    layer = model.stages[1].blocks[0].conv_mid[1]
    layer.forward = type(layer).forward.__get__(layer)


LEFT = "stages.1.blocks.0.conv_mid.1"


@pytest.mark.parametrize(
    ("change", "name", "why", "blocks"),
    [
        (_hook, LEFT, "hooks", 4),
        (_hook_inside, LEFT, "BatchNorm2d has hooks", 4),
        (_hook_block, "stages.1.blocks.0", "hooks", 4),
        (_pruning, LEFT, "Conv2d has hooks", 4),
        (_weight_norm, LEFT, "ParametrizedConv2d", 4),
        (_batch_statistics, LEFT, "own statistics", 4),
        (_reflecting, LEFT, "reflect", 4),
        (_own_forward, LEFT, "its own forward", 4),
    ],
)
def test_what_is_left_alone_is_said_once_and_computed(change: Any, name: str, why: str, blocks: int, way: str) -> None:
    model = network("ours")
    change(model)
    with pytest.warns(UserWarning, match="vovnet.fuse") as caught:
        fused = fuse(model)
    assert len(caught) == 1
    text = str(caught[0].message)
    assert f"left as they are: {name} (" in text
    assert why in text
    assert text.count("left as they are") == 1
    assert caught[0].filename == __file__
    assert len(of_type(fused, FusedOsaBlock)) == blocks
    check_equal(fused, model, image())
    with pytest.warns(UserWarning, match="left as they are"):
        check_equal(fuse(memory_efficient(copy.deepcopy(model))), model, image())


def test_a_norm_that_depends_on_the_image_stays_without_its_convolution(way: str) -> None:
    model = network("ours")
    _group_norm(model)
    model.eval()
    fused = fuse(model)
    assert len(of_type(fused, FusedOsaBlock)) == 4
    assert len(of_type(fused, GroupNormAct)) == 1
    assert not of_type(fused, nn.Conv2d)
    check_equal(fused, model, image())


def test_depthwise_blocks_that_kept_less_for_training(way: str) -> None:
    model = network("ese_vovnet19b_dw")
    check_equal(fuse(memory_efficient(copy.deepcopy(model))), model, image())


def _strided(model: Any) -> None:
    model.stages[3].blocks[0].conv_concat.conv.stride = (2, 2)


def _wide_aggregation(model: Any) -> None:
    layer = model.stages[1].blocks[0].conv_concat
    layer.conv = nn.Conv2d(layer.conv.in_channels, layer.conv.out_channels, 3, padding=1, bias=False).eval()


def _pool_in_the_first_stage(model: Any) -> None:
    del model.stages[0].pool
    model.stages[0].pool = nn.MaxPool2d(3, 1, 1).eval()  # registered behind the blocks


@pytest.mark.parametrize("change", [_strided, _wide_aggregation, _pool_in_the_first_stage])
def test_blocks_and_stages_that_are_built_otherwise(change: Any, way: str) -> None:
    model = network("vovnet39a")
    change(model)
    check_equal(fuse(model), model, image())


class Named(nn.Module):
    """A model that passes a keyword argument to a layer that is not fused."""

    def __init__(self) -> None:
        super().__init__()
        self.body: Any = network("ours", num_classes=0)
        self.head = nn.Linear(self.body.num_features, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(input=self.body(x))
        return out


def test_bfloat16_maps_reach_layers_that_are_left_alone(way: str) -> None:
    model = Named().eval()
    fused = fuse(model, precision="bf16")
    expected = model(image())
    torch.testing.assert_close(fused(image()), expected, rtol=0, atol=0.1 * float(expected.abs().max()))
    base._warned.clear()
    with pytest.warns(UserWarning, match="runs as plain PyTorch"):
        moved = fused.to(torch.bfloat16)
    assert moved(image().bfloat16()).dtype == torch.bfloat16


def test_hooks_of_what_is_copied_still_run(way: str) -> None:
    model = network("ours")
    seen: list[int] = []
    model.stages[1].register_forward_hook(lambda *_: seen.append(1))
    fused = fuse(model)
    fused(image())
    assert seen == [1]


class Unknown(nn.Module):
    """What it calls depends on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.conv(x) if float(x.sum()) > 0 else self.conv(-x)
        return out.mean((2, 3))


def test_unknown_models_are_copied_with_a_warning(way: str) -> None:
    torch.manual_seed(0)
    model = Unknown().eval()
    with pytest.warns(UserWarning, match="left as they are: conv .convolutions of layers that vovnet"):
        fused = fuse(model)
    check_equal(fused, model, image())
    linear = nn.Linear(5, 3).eval()
    with pytest.warns(UserWarning, match="nothing in this Linear is fused"):
        fused = fuse(linear)
    check_equal(fused, linear, image().flatten()[:5])


def test_other_models_of_timm(way: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model("regnetx_002", num_classes=5).eval()
    fused = fuse(model)
    assert len(of_type(fused, FusedConv)) > 30
    check_equal(fused, model, image())


def test_anti_aliasing(way: str) -> None:
    torch.manual_seed(0)
    model = trained(nn.Sequential(ConvNormAct(3, 16, 3, stride=2, aa_layer="blur"), ConvNormAct(16, 20, 3)))
    fused = fuse(model)
    assert len(of_type(fused, FusedConv)) == 2
    check_equal(fused, model, image())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"precision": "int8"}, "precision must be one of 'fp32', 'bf16', got 'int8'"),
        ({"precision": torch.bfloat16}, "precision must be one of"),
        ({"algorithm": "fastest"}, "algorithm must be one of 'auto', 'direct', got 'fastest'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        fuse(network("ours"), **arguments)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: "vovnet39", "expected a torch.nn.Module, got str"),
        (lambda: torch.compile(network("ours")), "compiled already"),
        (lambda: nn.DataParallel(network("ours")), "give model.module"),
    ],
)
def test_what_is_no_model(make: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        fuse(make())


def test_a_model_that_cannot_be_copied() -> None:
    model = network("ours")
    model.lock = threading.Lock()
    with pytest.raises(InputError, match="this VoVNet cannot be copied"):
        fuse(model)


def test_it_is_imported_when_asked_for() -> None:
    assert vovnet.fuse is fuse
    assert "fuse" in vovnet.__all__


@pytest.mark.parametrize("name", ["ours", "ese_vovnet39b_all", "ese_vovnet19b_dw"])
def test_bfloat16_is_as_exact_as_pytorchs(name: str, way: str) -> None:
    """Both features (bfloat16) and logits (float32)."""
    for features in (True, False):
        model = network(name, features_only=features)
        fused = fuse(model, precision="bf16")
        x = image(2, 96, 128)
        exact = outputs(copy.deepcopy(model).double()(x.double()))
        eager = outputs(copy.deepcopy(model).bfloat16()(x.bfloat16()))
        got, same = outputs(fused(x)), outputs(fused(x.bfloat16()))
        total = sum(_rms(one - true) / _rms(true) for one, true in zip(got, exact, strict=True))
        assert total <= 1.1 * sum(_rms(one - true) / _rms(true) for one, true in zip(eager, exact, strict=True))
        for one, other in zip(got, same, strict=True):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=0.2, atol=0.2 * _rms(one))
        if name == "ours":
            assert {one.dtype for one in got} == {torch.bfloat16 if features else torch.float32}


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())


def test_models_of_other_types_run_as_plain_pytorch(way: str) -> None:
    model = network("ours").double()
    vovnet.fusion.base._warned.clear()
    with pytest.warns(UserWarning, match="float64 on cpu runs as plain PyTorch") as caught:
        fused = fuse(model)
    assert len(caught) == 1
    torch.testing.assert_close(fused(image(dtype=torch.float64)), model(image(dtype=torch.float64)))
    half = network("ours").bfloat16()
    assert fuse(half, precision="bf16")(image()).dtype == torch.float32
    with pytest.warns(UserWarning, match="bfloat16 on cpu runs as plain PyTorch"):
        fused = fuse(half)
    assert fused(image(dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_copy_that_is_moved_runs_as_plain_pytorch(way: str) -> None:
    model = network("ours")
    fused = fuse(model)
    fused(image())
    vovnet.fusion.base._warned.clear()
    with pytest.warns(UserWarning, match="float64 on cpu") as caught:
        fused = fused.double()
    assert len(caught) == 1
    x = image(dtype=torch.float64)
    torch.testing.assert_close(fused(x), copy.deepcopy(model).double()(x), rtol=1e-4, atol=1e-4)
    check_equal(fused.float(), model, image())
    assert fuse(copy.deepcopy(model).to("meta"))(image().to("meta")).shape == (2, 5)


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (torch.zeros(1, 4, 32, 32), r"expected \(N, 3, H, W\), got \(1, 4, 32, 32\)"),
        (torch.zeros(3, 32, 32), r"expected \(N, 16, H, W\), got \(16, 8, 8\)"),  # a layer that has no such form
        (torch.zeros(1, 3, 32, 32, dtype=torch.float64), "expected torch.float32, got torch.float64"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.uint8), "expected torch.float32, got torch.uint8"),
        (torch.zeros(1, 3, 32, 32, device="meta"), "expected it on cpu, where the fused layer is, got meta"),
    ],
)
def test_wrong_images(x: Tensor, words: str, way: str) -> None:
    with pytest.raises(InputError, match=words):
        fuse(network("ours"))(x)


def test_gradients_of_the_image(way: str) -> None:
    model = network("ours")
    fused = fuse(model)
    with torch.enable_grad():
        grads = []
        for net, x in ((fused, image()), (copy.deepcopy(model).double(), image().double())):
            x.requires_grad_()
            net(x).square().sum().backward()
            grads.append(x.grad)
    assert float((grads[0] - grads[1]).abs().max()) <= 1e-3 * float(grads[1].abs().max())


def test_autocast(way: str) -> None:
    model = network("ours", features_only=True)
    fused = fuse(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, expected = fused(image()), model(image())
    for one, other in zip(got, expected, strict=True):
        assert one.dtype == other.dtype == torch.bfloat16
        assert _rms(one - other) <= 0.1 * _rms(other)


def test_forward_derivatives(way: str) -> None:
    """``torch.func.jvp`` uses PyTorch's operators."""
    model = network("ours")
    fused, x, direction = fuse(model), image(), draw((2, 3, 69, 58), 5, torch.float32)
    warnings.filterwarnings("ignore", category=FutureWarning)  # PyTorch's, of its own scripts
    _, got = torch.func.jvp(fused, (x,), (direction,))
    _, expected = torch.func.jvp(copy.deepcopy(model).double(), (x.double(),), (direction.double(),))
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


@pytest.mark.parametrize("mode", ["no_grad first", "inference_mode first"])
def test_inference_mode(mode: str, way: str) -> None:
    model = network("ours")
    fused = fuse(model)
    contexts: Any = [torch.no_grad, torch.inference_mode]
    for context in contexts if mode == "no_grad first" else contexts[::-1]:
        with context():
            check_equal(fused, model, image())
    with torch.enable_grad():
        fused(image().requires_grad_()).sum().backward()


def test_copies_and_pickles_compute_the_same(way: str) -> None:
    model = network("ours")
    fused = fuse(model)
    expected = fused(image())
    file = io.BytesIO()
    torch.save(fused, file)
    file.seek(0)
    assert len(pickle.dumps(fused)) < 1.1 * len(pickle.dumps(model))  # nothing packed is in it
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), torch.load(file, weights_only=False)):
        assert not any(layer.packed or layer.by_shape for layer in of_type(other, FusedConv))
        assert torch.equal(other(image()), expected)


def test_threads_meet_a_copy_at_once(way: str) -> None:
    model = network("ours")
    expected = fuse(model)(image())
    fused = fuse(model)
    gate = threading.Barrier(8)

    def call(_: int) -> Tensor:
        gate.wait()
        with torch.no_grad():
            return fused(image())  # type: ignore[no-any-return]

    with ThreadPoolExecutor(8) as pool:
        for out in pool.map(call, range(8)):
            assert torch.equal(out, expected)


def _in_child(fused: nn.Module, x: Tensor, queue: Any) -> None:
    with torch.no_grad():
        queue.put(fused(x).tolist())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_processes(way: str) -> None:
    """Forked processes share weights that are packed, and pack the others themselves."""
    fused = fuse(network("ours"))
    expected = fused(image())
    context = multiprocessing.get_context("fork")
    for copied in (fused, copy.deepcopy(fused)):
        queue = context.SimpleQueue()
        child = context.Process(target=_in_child, args=(copied, image(), queue))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        assert queue.get() == expected.tolist()


def _pack_in_child(fused: nn.Module, x: Tensor, queue: Any) -> None:
    with torch.no_grad():
        queue.put(float(fused(x).double().sum()))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_packs_a_large_weight() -> None:
    """The weight is so large that PyTorch copies it on several threads."""
    if not loader.cpu_operators():
        pytest.skip("no compiler")
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        fused, x = fuse(ConvNormAct(256, 256, 3).eval()), draw((1, 256, 9, 8), 1, torch.float32)
        expected = float(fused(x).double().sum())
        copied = copy.deepcopy(fused)  # without what is packed
        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        child = context.Process(target=_pack_in_child, args=(copied, x, queue))
        child.start()
        child.join(60)
        alive = child.is_alive()
        child.kill()
        assert not alive
        assert child.exitcode == 0
        assert queue.get() == expected
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", ["ours", pytest.param("ese_vovnet39b", marks=pytest.mark.slow)])
def test_compiling(name: str, way: str) -> None:
    model = network(name, features_only=True)
    fused = fuse(model)
    torch._dynamo.reset()
    compiled = torch.compile(fused, backend="aot_eager", fullgraph=True)
    for size in ((2, 64, 64), (2, 96, 64), (1, 33, 70)):
        x = image(*size)
        for one, other in zip(compiled(x), fused(x), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
            assert one.stride() == other.stride()


def test_tracing_and_exporting_give_plain_pytorch(way: str) -> None:
    model = network("ours")
    fused = fuse(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(fused, image())
        exported = torch.export.export(fused, (image(),), strict=False)
    text = str(exported.graph) + str(traced.inlined_graph)
    assert "aten" in text
    assert "vovnet::" not in text
    assert "vovnet.p" not in text
    check_equal(exported.module(), model, image())
    torch.testing.assert_close(traced(image()), model(image()), rtol=1e-4, atol=1e-4)


def test_the_kernels_compute_where_they_can(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either all convolutions and pools of the network use the kernels, or none does."""
    fused = fuse(network("ours"))
    calls: list[str] = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(str(func).removesuffix(".default"))
            return func(*args, **(kwargs or {}))

    fused(image())
    with Watch():
        fused(image())
    ours = [call for call in calls if call.startswith("vovnet.")]
    if way == "plain":
        assert not ours
    else:
        assert ours == ["vovnet.packed_chain"] * 2  # the stem and the stages
        assert not any("convolution" in call or "max_pool" in call for call in calls)


def test_require_without_a_library_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOVNET_OPS", "require")
    monkeypatch.setattr(loader, "_ensure_cpu", lambda: (_ for _ in ()).throw(loader.BuildError("no compiler")))
    with pytest.raises(RuntimeError, match="VOVNET_OPS=require"):
        fuse(network("ours"))


def test_memory_that_no_machine_has(way: str) -> None:
    """The first feature map would be larger than what can be addressed. The image is expanded and takes no memory."""
    fused = fuse(network("ours"))
    x = torch.zeros(1, 3, 1, 1).expand(1, 3, 8_000_000, 8_000_000)
    with pytest.raises(RuntimeError, match=r"(?i)memory"):
        fused(x)
    check_equal(fused, network("ours"), image())
