"""Feature maps from modules inside a timm model."""

from __future__ import annotations

import copy
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import timm
import torch
from torch import Tensor

from vovnet.adapters import fpn_backbone
from vovnet.errors import InputError

IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


def backbone(*modules: str, **arguments: Any) -> Any:
    torch.manual_seed(0)
    return fpn_backbone("resnet18", norm="bn", out_channels=16, out_modules=modules, **arguments).eval()


def test_the_maps_are_the_outputs_of_the_modules() -> None:
    found = backbone("layer2.0", "layer3", "layer4.0", "layer4.1")
    assert found.strides == (8, 16, 32, 32, 64)
    assert found.level_names == ("0", "1", "2", "3", "pool")
    kept: dict[str, Tensor] = {}
    reference = timm.create_model("resnet18").eval()
    reference.load_state_dict(found.body.state_dict(), strict=False)
    for name in ("layer2.0", "layer3", "layer4.0", "layer4.1"):
        reference.get_submodule(name).register_forward_hook(lambda m, i, out, name=name: kept.update({name: out}))
    with torch.no_grad():
        reference(IMAGES)
        maps = found.body(IMAGES)
        assert all(torch.equal(one, kept[name]) for one, name in zip(maps, kept, strict=True))
        assert [len(found(IMAGES)), len(maps)] == [5, 4]


def test_timms_own_places_give_timms_maps() -> None:
    own = backbone("layer1", "layer2", "layer3", "layer4")
    torch.manual_seed(0)
    ours = fpn_backbone("resnet18", norm="bn", out_channels=16).eval()
    assert own.state_dict().keys() == ours.state_dict().keys()
    assert own.strides == ours.strides
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(own(IMAGES).values(), ours(IMAGES).values(), strict=True))


def test_a_copy_has_maps_of_its_own() -> None:
    first = backbone("layer3", "layer4.0")
    second = copy.deepcopy(first)
    with torch.no_grad():
        before = first(IMAGES)
        for parameter in second.body.parameters():
            parameter.zero_()
        second(IMAGES)
        assert all(torch.equal(value, before[level]) for level, value in first(IMAGES).items())
        assert not second.body(IMAGES)[0].any()


def test_threads_do_not_mix_their_maps() -> None:
    """Both threads have passed the first module before either returns from the network."""
    network = backbone("layer3", "layer4.0")
    batches = [IMAGES, 1 - IMAGES]
    with torch.no_grad():
        expected = [network(batch) for batch in batches]
        barrier = threading.Barrier(2, timeout=60)
        network.body.get_submodule("layer4.0").register_forward_hook(lambda *_: (barrier.wait(), None)[1])
        with ThreadPoolExecutor(2) as threads:
            found = list(threads.map(torch.no_grad()(network), batches))
    assert all(torch.equal(a[level], b[level]) for a, b in zip(found, expected, strict=True) for level in b)


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ([], "empty"),
        (["layer9"], "layer9"),
        ([""], "module ''"),
        (["layer4", "layer3"], "32, 16"),
        (["global_pool"], "global_pool"),
    ],
)
def test_modules_without_maps_are_refused(modules: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words) as refused:
        backbone(*modules)
    assert "out_modules" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("swin_tiny_patch4_window7_224", ["layers_2", "layers_3"]),  # takes images of 224 pixels alone
        ("vit_tiny_patch16_224", ["model.blocks.5", "model.blocks.11"]),
        ("pvt_v2_b0", ["stages_2.blocks.0"]),  # its output is a sequence
    ],
)
def test_a_network_that_gives_no_maps_is_refused(name: str, modules: list[str]) -> None:
    with pytest.raises(InputError, match=rf"out_modules: .*{name}") as refused:
        fpn_backbone(name, norm="bn", out_channels=8, out_modules=modules)
    assert "\n" not in str(refused.value)


@pytest.mark.filterwarnings("ignore:.*stages do not train")
def test_timms_own_maps_need_no_strides_of_a_pyramid() -> None:
    """This network has the strides 2, 4, 8, 8, 8, and fpn_backbone alone refuses it."""
    found = backbone("layer2.0", "layer3", trainable_stages=1, backbone_args={"output_stride": 8})
    assert found.strides == (8, 8, 16)
    trained = {key.partition(".")[0] for key, value in found.body.named_parameters() if value.requires_grad}
    assert trained == {"layer4"}
    with torch.no_grad():
        assert [tuple(level.shape[2:]) for level in found(IMAGES).values()] == [(8, 12), (8, 12), (4, 6)]


def test_indices_beside_modules_are_refused() -> None:
    with pytest.raises(InputError, match=r"out_indices.*out_modules"):
        backbone("layer3", "layer4", out_indices=[2, 3])


def test_an_instance_has_its_own_maps() -> None:
    with pytest.raises(InputError, match="out_modules"):
        fpn_backbone(timm.create_model("resnet18", features_only=True), out_modules=["layer3"])
