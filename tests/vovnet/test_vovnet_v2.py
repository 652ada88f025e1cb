"""Compare VoVNetV2 with a second implementation in plain torch that uses vovnet-detectron2's names."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from timm.models.vovnet import VovNet, model_cfgs
from torch import Tensor
from torch.nn import functional as F

import vovnet  # noqa: F401 (registers our models)
from vovnet.vovnet_v2 import EseVovNet, published_v2_keys

WIDE = ((128, 160, 192, 224), (256, 512, 768, 1024))
SLIM = ((64, 80, 96, 112), (112, 256, 384, 512))
# stem, widths, layers of a block, blocks of a stage, depthwise (arXiv:1911.06667 and the lightweight networks)
NETWORKS: dict[str, tuple[Any, ...]] = {
    "ese_vovnet19b_slim_dw": ((64, 64, 64), SLIM, 3, (1, 1, 1, 1), True),
    "ese_vovnet19b_dw": ((64, 64, 64), WIDE, 3, (1, 1, 1, 1), True),
    "ese_vovnet19b_slim": ((64, 64, 128), SLIM, 3, (1, 1, 1, 1), False),
    "ese_vovnet19b": ((64, 64, 128), WIDE, 3, (1, 1, 1, 1), False),
    "ese_vovnet39b_all": ((64, 64, 128), WIDE, 5, (1, 1, 2, 2), False),
    "ese_vovnet57b_all": ((64, 64, 128), WIDE, 5, (1, 1, 4, 3), False),
    "ese_vovnet99b_all": ((64, 64, 128), WIDE, 5, (1, 3, 9, 3), False),
}
ALL_BLOCKS = ("ese_vovnet39b_all", "ese_vovnet57b_all", "ese_vovnet99b_all")


class Restated:
    """Compute the published network from its state dict."""

    def __init__(self, stem: Any, widths: Any, layers: int, blocks: Any, depthwise: bool) -> None:
        self.stem, (self.mids, self.outs), self.layers, self.blocks = stem, widths, layers, blocks
        self.depthwise = depthwise

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return published key → shape, without counters and classifier."""
        found = self._unit("stem.stem_1", 3, self.stem[0], 3, False)
        for i in (1, 2):
            found |= self._unit(f"stem.stem_{i + 1}", self.stem[i - 1], self.stem[i], 3, self.depthwise)
        width = self.stem[2]
        for s, (mid, out, blocks) in enumerate(zip(self.mids, self.outs, self.blocks, strict=True), start=2):
            for b in range(1, blocks + 1):
                found |= self._block(f"OSA{s}_{b}", f"stage{s}.OSA{s}_{b}", width, mid, out)
                width = out
        return found

    def _block(self, osa: str, path: str, width: int, mid: int, out: int) -> dict[str, tuple[int, ...]]:
        found, into = {}, width
        if self.depthwise:
            if width != mid:
                found |= self._unit(f"{path}.conv_reduction.{osa}_reduction_0", width, mid, 1, False)
            into = mid
        for i in range(self.layers):
            found |= self._unit(f"{path}.layers.{i}.{osa}_{i}", into, mid, 3, self.depthwise)
            into = mid
        found |= self._unit(f"{path}.concat.{osa}_concat", width + self.layers * mid, out, 1, False)
        return found | {f"{path}.ese.fc.weight": (out, out, 1, 1), f"{path}.ese.fc.bias": (out,)}

    @staticmethod
    def _unit(path: str, into: int, out: int, kernel: int, separable: bool) -> dict[str, tuple[int, ...]]:
        if separable:
            convs = {f"{path}/dw_conv3x3.weight": (out, 1, 3, 3), f"{path}/pw_conv1x1.weight": (out, into, 1, 1)}
        else:
            convs = {f"{path}/conv.weight": (out, into, kernel, kernel)}
        norm = f"{path}/{'pw_norm' if separable else 'norm'}"
        return convs | {f"{norm}.{leaf}": (out,) for leaf in ("weight", "bias", "running_mean", "running_var")}

    def features(self, state: dict[str, Tensor], x: Tensor) -> list[Tensor]:
        """Return the feature maps of stages 2 to 5."""

        def unit(path: str, x: Tensor, stride: int = 1) -> Tensor:
            if f"{path}/conv.weight" in state:
                weight, norm = state[f"{path}/conv.weight"], f"{path}/norm"
                x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
            else:
                weight, norm = state[f"{path}/dw_conv3x3.weight"], f"{path}/pw_norm"
                x = F.conv2d(x, weight, stride=stride, padding=1, groups=weight.shape[0])
                x = F.conv2d(x, state[f"{path}/pw_conv1x1.weight"])
            leaves = [state[f"{norm}.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias")]
            return F.relu(F.batch_norm(x, *leaves, eps=1e-5))

        for i, stride in enumerate((2, 1, 2), start=1):
            x = unit(f"stem.stem_{i}", x, stride)
        found = []
        for s, blocks in enumerate(self.blocks, start=2):
            if s > 2:
                x = F.max_pool2d(x, 3, 2, ceil_mode=True)
            for b in range(1, blocks + 1):
                osa, path, parts = f"OSA{s}_{b}", f"stage{s}.OSA{s}_{b}", [x]
                reduction = f"{path}.conv_reduction.{osa}_reduction_0"
                y = unit(reduction, x) if f"{reduction}/conv.weight" in state else x
                for i in range(self.layers):
                    y = unit(f"{path}.layers.{i}.{osa}_{i}", y)
                    parts.append(y)
                y = unit(f"{path}.concat.{osa}_concat", torch.cat(parts, 1))
                gate = F.conv2d(
                    y.mean((2, 3), keepdim=True), state[f"{path}.ese.fc.weight"], state[f"{path}.ese.fc.bias"]
                )
                y = y * (F.relu6(gate + 3) / 6)
                x = y + x if b > 1 else y
            found.append(x)
        return found


def published_state(name: str, seed: int = 0) -> dict[str, Tensor]:
    """Return random float32 weights that keep activations in range."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in Restated(*NETWORKS[name]).shapes().items():
        if key.endswith(("running_var", "norm.weight")):
            state[key] = torch.rand(shape, generator=generator) + 0.5
        else:
            scale = (2 / torch.Size(shape[1:]).numel()) ** 0.5 if len(shape) == 4 else 0.3
            state[key] = torch.randn(shape, generator=generator) * scale
    return state


@pytest.mark.parametrize("name", NETWORKS)
def test_names_and_shapes_are_the_published_ones(name: str) -> None:
    model = timm.create_model(name, device="meta")
    names, ours = published_v2_keys(model), model.state_dict()
    assert len(set(names.values())) == len(names)
    assert set(names.values()) == set(ours)
    shapes = {
        theirs: tuple(ours[key].shape)
        for theirs, key in names.items()
        if not theirs.endswith("num_batches_tracked") and not theirs.startswith("classifier.")
    }
    assert shapes == Restated(*NETWORKS[name]).shapes()


@pytest.mark.parametrize("name", ["ese_vovnet19b_slim_dw", "ese_vovnet19b_slim", "ese_vovnet39b_all"])
def test_features_equal_a_restatement_in_float64(name: str) -> None:
    state = {key: value.double() for key, value in published_state(name).items()}
    model = timm.create_model(name, features_only=True, out_indices=(1, 2, 3, 4)).double().eval()
    whole = published_v2_keys(timm.create_model(name, device="meta"))
    ours = {whole[key].replace("stem.", "stem_").replace("stages.", "stages_"): value for key, value in state.items()}
    missing, unexpected = model.load_state_dict(ours, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)
    x = torch.randn(2, 3, 70, 53, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        for got, wanted in zip(model(x), Restated(*NETWORKS[name]).features(state, x), strict=True):
            assert got.shape == wanted.shape
            torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ALL_BLOCKS)
def test_only_the_attention_differs_from_timms(name: str) -> None:
    ours = timm.create_model(name, device="meta")
    theirs = timm.create_model(name.removesuffix("_all"), device="meta")
    assert isinstance(ours, VovNet)
    assert type(ours) is EseVovNet
    more = set(ours.state_dict()) - set(theirs.state_dict())
    assert not set(theirs.state_dict()) - set(ours.state_dict())
    assert more
    assert all(".attn.fc." in key for key in more)
    blocks = [block for stage in ours.stages for block in stage.blocks]
    assert all(block.attn is not None for block in blocks)
    assert len(more) == 2 * (len(blocks) - 4)


def test_19b_has_the_configuration_of_timm() -> None:
    model = timm.create_model("ese_vovnet19b", device="meta")
    theirs = VovNet(model_cfgs["ese_vovnet19b"], device="meta")
    assert type(model) is EseVovNet
    assert list(model.state_dict()) == list(theirs.state_dict())
    assert model.pretrained_cfg["first_conv"] == "stem.0.conv"


def test_what_timm_offers_works() -> None:
    model = timm.create_model("ese_vovnet39b_all", num_classes=3, in_chans=1, drop_path_rate=0.1)
    fresh = model.stages[2].blocks[0].attn.fc.weight.detach()
    assert 0.5 < float(fresh.std() / (2 / fresh.shape[0]) ** 0.5) < 2  # Kaiming normal over the fan-out
    model(torch.randn(2, 1, 64, 64)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.set_grad_checkpointing()
    model.reset_classifier(0)
    assert model(torch.randn(1, 1, 64, 64)).shape == (1, 1024)
    assert model.pretrained_cfg["architecture"] == "ese_vovnet39b_all"
    with pytest.raises(RuntimeError, match="No pretrained weights exist"):
        timm.create_model("ese_vovnet39b_all", pretrained=True)
    with pytest.raises(TypeError):
        timm.create_model("ese_vovnet39b_all", nonsense=1)


def test_device_and_dtype_reach_every_block() -> None:
    model = timm.create_model("ese_vovnet57b_all", device="meta", dtype=torch.bfloat16)
    assert {(p.device.type, p.dtype) for p in model.parameters()} == {("meta", torch.bfloat16)}
