"""Containers that call fused layers in chains: the same outputs as layer by layer; hooks and changes are respected."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import timm
import torch
from osa_reference import draw
from small_networks import network, trained
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from vovnet import fuse
from vovnet.fusion.layers import FusedMaxPool2d, FusedOsaBlock
from vovnet.fusion.sequences import FusedFeatureDict, FusedFeatureList, FusedSequential, run_sequence
from vovnet.ops.build import loader


@pytest.fixture(autouse=True)
def kernels() -> Iterator[None]:
    """Skip without compiled kernels: layers are then called one by one."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if not loader.cpu_operators():
            pytest.skip("needs the compiled operators for the CPU")
        yield


def net(name: str = "vovnet27_slim", **options: Any) -> Any:
    """Return a fused network with enough channels for every kernel."""
    torch.manual_seed(0)
    return fuse(trained(timm.create_model(name, pretrained=False, **options)).eval())


def image(*size: int) -> Tensor:
    return draw((*size[:1], 3, *size[1:]), 1, torch.float32)


class Calls(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the calls of our operators."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func).startswith("vovnet."):
            self.names.append(str(func).removeprefix("vovnet.").removesuffix(".default"))
        return func(*args, **(kwargs or {}))


def calls(module: Any, x: Tensor) -> tuple[Any, list[str]]:
    with Calls() as seen:
        out = module(x)
    return out, seen.names


def one_by_one(fused: Any, x: Tensor) -> list[Tensor]:
    """Return the feature maps of an extractor, computed layer by layer."""
    maps = []
    for name, module in fused.items():
        x = module(x)
        if name in fused.return_layers:
            maps.append(x)
    return maps


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("size", [(1, 96, 80), (3, 33, 65), (2, 32, 32)])
def test_features_in_one_call(size: tuple[int, int, int], precision: str) -> None:
    torch.manual_seed(0)
    model = trained(timm.create_model("vovnet27_slim", features_only=True, out_indices=(0, 2, 4))).eval()
    fused: Any = fuse(model, precision=precision)
    fused(image(*size))
    got, names = calls(fused, image(*size))
    assert names == ["packed_chain"]
    for one, other in zip(got, one_by_one(fused, image(*size)), strict=True):
        assert torch.equal(one, other)
        assert one.stride() == other.stride()


@pytest.mark.parametrize(("cls", "kind"), [("list", FusedFeatureList), ("dict", FusedFeatureDict)])
def test_kinds_of_extractors(cls: str, kind: type[nn.Module]) -> None:
    fused = net(features_only=True, feature_cls=cls)
    assert type(fused) is kind
    for copied in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        assert type(copied) is kind
        for one, other in zip(list(copied(image(1, 40, 40))), list(fused(image(1, 40, 40))), strict=True):
            assert isinstance(one, str) or torch.equal(one, other)


def test_a_classifier_takes_two_calls() -> None:
    fused = net()
    assert type(fused.stem) is type(fused.stages) is FusedSequential
    fused(image(1, 64, 64))
    assert calls(fused, image(1, 64, 64))[1] == ["packed_chain"] * 2
    taken = fused.stages(fused.stem(image(1, 64, 64)))
    x = image(1, 64, 64)
    for layer in [*fused.stem, *fused.stages]:
        x = layer(x)
    assert torch.equal(taken, x)


def test_an_attention_ends_a_chain() -> None:
    """In this network the last block of each stage has an attention."""
    fused = net("ese_vovnet39b")
    fused(image(1, 64, 64))
    out, names = calls(fused.stages, fused.stem(image(1, 64, 64)))
    assert names == ["packed_chain", "pool_max", *["packed_chain"] * 5]
    x = fused.stem(image(1, 64, 64))
    for stage in fused.stages:
        for layer in [*([] if stage.pool is None else [stage.pool]), *stage.blocks]:
            x = layer(x)
    assert torch.equal(out, x)


def test_hooks_see_every_call() -> None:
    fused = net(features_only=True)
    expected = fused(image(1, 64, 64))
    seen: list[str] = []
    for name in ("stem_1", "stages_1", "stages_2.pool", "stages_3.blocks"):
        fused.get_submodule(name).register_forward_hook(lambda *_, name=name: seen.append(name))
    for one, other in zip(fused(image(1, 64, 64)), expected, strict=True):
        assert torch.equal(one, other)
    assert seen == ["stem_1", "stages_1", "stages_2.pool", "stages_3.blocks"]


def test_a_layer_that_is_exchanged_afterwards() -> None:
    fused = net()
    x = image(1, 64, 64)
    before = fused.stages(fused.stem(x))
    fused.stages[3] = nn.Identity()
    assert fused.stages(fused.stem(x)).shape[1] < before.shape[1]
    fused.stem[0].forward = lambda x: torch.zeros_like(x).repeat(1, 22, 1, 1)[:, :64, ::2, ::2]
    assert fused.stem(x).std(dim=(0, 2, 3))[:, None].max() < fused.stem(x).abs().max()
    del fused.stem[0].forward
    other = net()
    fused.stem[1] = other.stem[2]
    fused.stem[2] = nn.Identity()
    assert torch.equal(fused.stem(x), other.stem[2](fused.stem[0](x)))


def test_a_layer_that_is_converted_afterwards() -> None:
    """The chain's plan is made again after a layer was converted."""
    fused = net()
    x = image(1, 64, 64)
    before = fused(x)
    with torch.no_grad():
        fused.stem[1]._apply(lambda weight: weight * 2)
    assert not torch.allclose(fused(x), before)
    fused.stem[1]._apply(lambda weight: weight / 2)
    assert torch.equal(fused(x), before)
    fused.double().float()
    assert torch.equal(fused(x), before)


def test_shorter_chains_of_the_same_layers() -> None:
    fused = net(features_only=True)
    x = image(1, 64, 64)
    expected = fused(x)[-1]
    for _ in range(2):
        shorter = run_sequence([("a", fused.stem_0), ("b", fused.stem_1)], x)[0]
        assert torch.equal(shorter, fused.stem_1(fused.stem_0(x)))
        assert torch.equal(fused(x)[-1], expected)


def test_a_layer_twice_in_a_row() -> None:
    fused = net()
    layer = fused.stem[1]
    expected = layer(layer(fused.stem[0](image(1, 32, 32))))
    last, taken = run_sequence([("a", fused.stem[0]), ("b", layer), ("c", layer)], image(1, 32, 32), ("b",))
    assert torch.equal(last, expected)
    assert torch.equal(taken["b"], layer(fused.stem[0](image(1, 32, 32))))


def test_gradients_go_through_plain_pytorch() -> None:
    fused = net(features_only=True)
    x = image(1, 64, 64)
    expected = fused(x)[-1]
    with torch.enable_grad():
        x.requires_grad_()
        got, names = calls(fused, x)
        assert not names
        got[-1].sum().backward()
        assert x.grad is not None
        fused.stages_3.blocks[0].conv_concat.weight.requires_grad_()
        got, names = calls(fused, image(1, 64, 64))
        assert got[-1].requires_grad
    torch.testing.assert_close(got[-1], expected, rtol=1e-4, atol=1e-4)


def test_what_is_asked_for_beside_the_last() -> None:
    """Outputs of identities and of layers without a kernel can be asked for, too."""
    pool = FusedMaxPool2d([3, 3], [2, 2], [1, 1], False)
    conv = net().stem[0]
    x = image(1, 32, 32)
    modules = [("first", nn.Identity()), ("a", conv), ("same", nn.Identity()), ("b", pool), ("c", nn.Sigmoid())]
    last, taken = run_sequence(modules, x, ("first", "a", "same", "c"))
    assert list(taken) == ["first", "a", "same", "c"]
    assert torch.equal(taken["first"], x)
    assert taken["a"] is taken["same"]
    assert torch.equal(taken["a"], conv(x))
    assert torch.equal(last, pool(conv(x)).sigmoid())
    assert taken["c"] is last
    last, taken = run_sequence([], x)
    assert last is x
    assert not taken


@pytest.mark.parametrize("channels", [3, 16])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_chain_that_begins_with_a_pool(precision: str, channels: int) -> None:
    """Inputs may have any layout."""
    torch.manual_seed(0)
    convs = [Conv2dNormActivation(channels, 16, 3), Conv2dNormActivation(16, 24, 3)]
    fused: Any = fuse(nn.Sequential(nn.MaxPool2d(2), *convs).eval(), precision=precision)
    assert type(fused) is FusedSequential
    for layout in (torch.contiguous_format, torch.channels_last):
        x = draw((2, channels, 32, 36), 1, torch.float32).contiguous(memory_format=layout)
        assert torch.equal(fused(x), fused[2](fused[1](fused[0](x))))


def test_pools_alone_are_no_chain() -> None:
    pool = FusedMaxPool2d([3, 3], [2, 2], [1, 1], False)
    x = image(1, 32, 32)
    assert torch.equal(run_sequence([("a", pool), ("b", pool)], x)[0], pool(pool(x)))


def test_a_network_of_few_channels_in_bfloat16() -> None:
    """A layer that reads float32 begins a new chain."""
    fused: Any = fuse(network("ours", features_only=True), precision="bf16")
    fused(image(2, 64, 64))
    got, names = calls(fused, image(2, 64, 64))
    assert names.count("packed_chain") >= 1
    for one, other in zip(got, one_by_one(fused, image(2, 64, 64)), strict=True):
        assert torch.equal(one, other)


def ranges(module: nn.Module, x: Tensor) -> tuple[Any, list[str]]:
    """Return the output under a profiler, and the names of the ranges that Python opened, in order."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        out = module(x)
    return out, [event.name for event in profiler.events() if event.is_user_annotation]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_profiler_shows_each_layer_of_a_chain(precision: str) -> None:
    fused = fuse(network(), precision=precision)
    x = image(1, 64, 64)
    fused(x)  # packs the weights
    expected, before = calls(fused, x)
    out, names = ranges(fused, x)
    assert torch.equal(out, expected)
    assert calls(fused, x)[1] == before, "the profiler is off again"
    stem = [f"stem.{i} (FusedConv)" for i in range(3)]
    assert names[:3] == stem
    parts = dict(fused.named_modules())
    for name in names:
        path, kind = name.removesuffix(")").split(" (")
        assert type(parts[path]).__name__ == kind
    blocks = [name for name in names if "FusedOsaBlock" in name]
    assert len(blocks) == sum(isinstance(part, FusedOsaBlock) for part in fused.modules())
    assert len(names) == len(set(names)) == 3 + len(blocks) + sum(isinstance(p, FusedMaxPool2d) for p in parts.values())


def test_a_profiler_shows_layers_with_attention_and_those_of_extractors() -> None:
    _, names = ranges(fuse(network("ese_vovnet39b", features_only=True)), image(1, 64, 64))
    assert sum("FusedOsaBlock" in name for name in names) == 5
    assert "stem.0 (FusedConv)" in names or "stem_0 (FusedConv)" in names


def test_without_a_profiler_no_range_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise AssertionError(name)

    monkeypatch.setattr("vovnet.fusion.sequences.record_function", refuse)
    net()(image(1, 64, 64))


def test_a_profiler_changes_no_program() -> None:
    """Neither traced nor exported models get ranges, and a compiled one compiles as without."""
    model, x = network(), image(1, 64, 64)
    fused = fuse(model)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        traced = torch.jit.trace(fused, x)
        exported = torch.export.export(fused, (x,))
        compiled = torch.compile(fused, backend="eager", fullgraph=True)(x)
    assert "profiler" not in str(traced.inlined_graph)
    assert not [node for node in exported.graph.nodes if "profiler" in str(node.target)]
    torch.testing.assert_close(compiled, model(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("where", ["stages.3", "stages.3.blocks.0", "stem"])
def test_hooks_that_look_for_gradients_are_told_where_these_are(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vovnet.fusion.base._warned", set())
    fused, x, seen = fuse(network()), image(1, 64, 64), []
    fused.get_submodule(where).register_forward_hook(lambda module, inputs, out: seen.append(out))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fused(x)  # without gradients, hooks record features
        with torch.enable_grad():
            fused(x.clone().requires_grad_()).sum().backward()
    assert [part.requires_grad for part in seen] == [False, True]
    with torch.enable_grad(), pytest.warns(UserWarning, match="requires_grad_"):
        fused(x)
