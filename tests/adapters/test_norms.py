"""Conversion of a backbone's norms."""

import copy
import warnings

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.layers import BatchNormAct2d, GroupNormAct
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from vovnet.adapters import fpn_backbone
from vovnet.adapters.norms import Norm, batch_norms, convert_norms, norm_layer, values_per_statistic
from vovnet.errors import InputError

MODELS = ["resnet18", "ese_vovnet19b_dw"]  # with BatchNorm2d, and with timm's BatchNormAct2d


def trained(name: str, **kwargs: object) -> nn.Module:
    """A features_only instance whose norms have done something."""
    net = timm.create_model(name, features_only=True, **kwargs)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.1, 0.1)
    return net


@pytest.mark.parametrize("name", MODELS)
def test_frozen_norms_compute_what_batch_norm_computes_in_evaluation(name: str) -> None:
    net = trained(name)
    reference = copy.deepcopy(net).eval()
    backbone = fpn_backbone(net, pretrained=True, norm="frozen_bn", out_channels=8)
    assert not batch_norms(backbone.body)
    image = torch.rand(2, 3, 64, 64)
    backbone.train()
    before = {k: v.clone() for k, v in backbone.state_dict().items()}
    for ours, theirs in zip(backbone.body(image), reference(image), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(v, before[k]) for k, v in backbone.state_dict().items())


@pytest.mark.parametrize("name", MODELS)
def test_frozen_and_trainable_norms_read_each_others_files(name: str) -> None:
    frozen = fpn_backbone(trained(name), pretrained=True, norm="frozen_bn", out_channels=8)
    plain = fpn_backbone(trained(name), norm="bn", out_channels=8)
    keys = {k for k in plain.state_dict() if not k.endswith("num_batches_tracked")}
    assert set(frozen.state_dict()) == keys
    frozen.load_state_dict(plain.state_dict())
    plain.load_state_dict(dict(frozen.state_dict()))
    clone = copy.deepcopy(frozen)
    assert list(clone.state_dict()) == list(frozen.state_dict())
    image = torch.rand(1, 3, 64, 64)
    torch.testing.assert_close(frozen.eval()(image)["3"], plain.eval()(image)["3"], rtol=1e-4, atol=1e-5)
    assert torch.equal(frozen(image)["3"], clone.eval()(image)["3"])


def test_random_weights_are_not_frozen_and_the_user_is_told() -> None:
    with pytest.warns(UserWarning, match="20 batch norms not frozen, because the weights are not pretrained"):
        backbone = fpn_backbone("resnet18", norm="frozen_bn", out_channels=8)
    assert len(batch_norms(backbone.body)) == 20
    assert "not frozen" in backbone.norm_report


def test_other_norms_are_left_and_the_user_is_told() -> None:
    with pytest.warns(UserWarning, match="30 LayerNorm left as they are"):
        backbone = fpn_backbone("pvt_v2_b0", pretrained=True, download=False, norm="frozen_bn", out_channels=8)
    assert sum(isinstance(m, nn.LayerNorm) for m in backbone.body.modules()) == 30
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in backbone.body.modules())


def test_doing_what_was_asked_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for norm in ("frozen_bn", "bn", "sync_bn"):
            fpn_backbone("resnet18", pretrained=True, download=False, norm=norm, out_channels=8)
        fpn_backbone("resnet18", norm="gn", out_channels=8)


@pytest.mark.parametrize("name", MODELS)
def test_synchronised_norms_compute_the_same_in_one_process(name: str) -> None:
    net = trained(name)
    reference = copy.deepcopy(net).train()
    backbone = fpn_backbone(net, norm="sync_bn", out_channels=8).train()
    assert all(isinstance(backbone.body.get_submodule(n), nn.SyncBatchNorm) for n in batch_norms(backbone.body))
    image = torch.rand(2, 3, 64, 64)
    for ours, theirs in zip(backbone.body(image), reference(image), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [*MODELS, "mobilenetv3_large_100"])
def test_group_norms_take_the_place_of_batch_norms(name: str) -> None:
    plain = fpn_backbone(name, norm="bn", out_channels=8)
    backbone = fpn_backbone(name, norm="gn", out_channels=8)
    replaced = batch_norms(plain.body)
    assert replaced
    assert not batch_norms(backbone.body)
    for norm in replaced:
        assert isinstance(backbone.body.get_submodule(norm), nn.GroupNorm)
    # The activation inside a timm norm must survive.
    acts = [type(m).__name__ for m in plain.body.modules()].count("ReLU")
    assert [type(m).__name__ for m in backbone.body.modules()].count("ReLU") == acts
    single, pair = torch.rand(1, 3, 64, 64), torch.rand(1, 3, 64, 64)
    backbone.train()
    if name != "mobilenetv3_large_100":
        together = backbone(torch.cat([single, pair]))["2"][:1]
        torch.testing.assert_close(backbone(single)["2"], together, rtol=1e-4, atol=1e-5)


def test_group_norm_over_pretrained_batch_norm_is_an_error_unless_forced() -> None:
    with pytest.raises(InputError, match=r"would replace 20 batch norms .*force_norm=True"):
        fpn_backbone(trained("resnet18"), pretrained=True, norm="gn")
    net = trained("resnet18")
    weight = net.bn1.weight.detach().clone()
    backbone = fpn_backbone(net, pretrained=True, norm="gn", force_norm=True, out_channels=8)
    assert isinstance(backbone.body.bn1, nn.GroupNorm)
    assert torch.equal(backbone.body.bn1.weight, weight)


def test_group_norm_where_there_is_no_batch_norm_changes_nothing() -> None:
    with pytest.warns(UserWarning, match="0 batch norms"):
        fpn_backbone("pvt_v2_b0", pretrained=True, download=False, norm="gn", out_channels=8)


def test_hooks_of_timms_extractors_survive() -> None:
    # xception41 takes its maps with hooks, so a lost hook would be a lost map.
    backbone = fpn_backbone("xception41", pretrained=True, download=False, norm="frozen_bn", out_channels=8)
    assert len(backbone.eval()(torch.rand(1, 3, 64, 64))) == 5


def test_the_pyramids_own_norms() -> None:
    assert norm_layer(None) is None
    for norm, kind in (("bn", nn.BatchNorm2d), ("sync_bn", nn.SyncBatchNorm), ("gn", nn.GroupNorm)):
        backbone = fpn_backbone("resnet18", norm="bn", fpn_norm=norm, out_channels=48)
        assert sum(isinstance(m, kind) for m in backbone.fpn.modules()) == 8


@pytest.mark.parametrize("argument", ["norm", "fpn_norm", "extra_level"])
def test_unknown_choices_are_refused(argument: str) -> None:
    with pytest.raises(InputError, match=f"{argument} must be one of .*'nothing'"):
        fpn_backbone("resnet18", **{argument: "nothing"})  # type: ignore[arg-type]


@pytest.mark.parametrize("norm", ["bn", "frozen_bn", "sync_bn"])
@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050"])  # norms alone, and norms with activations
def test_the_epsilon_that_is_asked_for(name: str, norm: Norm) -> None:
    net = timm.create_model(name)
    convert_norms(net, norm, pretrained=True, force=False, eps=0.25)
    assert {module.eps for module in net.modules() if hasattr(module, "eps")} == {0.25}


@given(
    kind=st.sampled_from([nn.GroupNorm, GroupNormAct, nn.BatchNorm2d, BatchNormAct2d, nn.BatchNorm1d]),
    images=st.integers(1, 3),
    groups=st.integers(1, 4),
    of_a_group=st.integers(1, 3),
    size=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    training=st.booleans(),
    tracked=st.booleans(),
)
def test_torch_refuses_means_of_a_single_value(
    kind: type[nn.Module],
    images: int,
    groups: int,
    of_a_group: int,
    size: tuple[int, int],
    training: bool,
    tracked: bool,
) -> None:
    channels = groups * of_a_group
    if kind is nn.GroupNorm:
        norm: nn.Module = nn.GroupNorm(groups, channels)
    elif kind is GroupNormAct:
        norm = GroupNormAct(channels, num_groups=groups)
    else:
        norm = kind(channels, track_running_stats=tracked)
    shape = (images, channels) if kind is nn.BatchNorm1d else (images, channels, *size)
    norm.train(training)
    single = values_per_statistic(norm, shape) == 1
    if not single:
        norm(torch.rand(shape))
        return
    with pytest.raises(ValueError, match="more than 1 value"):
        norm(torch.rand(shape))
