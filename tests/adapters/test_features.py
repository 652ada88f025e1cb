"""Backbones from timm models by name and by instance, their normalisation, and errors of the user."""

import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import adapt_input_conv
from torch import nn

from vovnet.adapters import fpn_backbone
from vovnet.adapters.features import for_channels
from vovnet.errors import InputError

SMALL = "test_resnet"  # timm's own, of few parameters


def test_pretrained_weights_are_loaded(tmp_path: Path) -> None:
    trained = timm.create_model("resnet18")
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    overlay = {"pretrained_cfg_overlay": {"file": str(tmp_path / "weights.pth")}}
    backbone = fpn_backbone("resnet18", pretrained=True, out_channels=8, backbone_args=overlay)
    for name, value in backbone.body.state_dict().items():
        torch.testing.assert_close(value, trained.state_dict()[name])
    assert "20 batch norms frozen" in backbone.norm_report


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("code-that-ran"),)


def _by_checkpoint_path(file: Path) -> dict[str, Any]:
    return {"backbone_args": {"checkpoint_path": str(file)}}


def _by_overlay(file: Path) -> dict[str, Any]:
    return {"pretrained": True, "backbone_args": {"pretrained_cfg_overlay": {"file": str(file)}}}


WAYS = [_by_checkpoint_path, _by_overlay]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_classifiers_file_is_loaded_by_every_argument_that_names_one(way: Any, suffix: str, tmp_path: Path) -> None:
    trained, file = timm.create_model(SMALL, num_classes=3), tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": trained.state_dict(), "epoch": 3}, file)
    else:
        save_file(trained.state_dict(), file)
    backbone = fpn_backbone(SMALL, out_channels=8, **way(file))
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in backbone.body.state_dict().items())
    assert "batch norms frozen" in backbone.norm_report


def _save_other_network(path: Path) -> None:
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).state_dict(), path)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("code.pth", lambda path: torch.save({"state_dict": _Evil()}, path)),
        ("code.pkl", lambda path: path.write_bytes(pickle.dumps(_Evil()))),
        ("text.pth", lambda path: path.write_text("hello")),
        ("empty.pth", lambda path: path.touch()),
        ("list.pth", lambda path: torch.save([1, 2], path)),
        ("other_network.pth", _save_other_network),
        ("resnet50.pth", lambda path: torch.save({"conv1.weight": torch.zeros(8, 3, 7, 7)}, path)),
        ("damaged.safetensors", lambda path: path.write_bytes(b"xx")),
        ("numpy.npz", lambda path: path.write_bytes(b"xx")),
        ("missing.pth", lambda path: None),
        ("folder.pth", lambda path: path.mkdir()),
    ],
)
def test_a_file_of_weights_that_cannot_be_used_is_named(
    way: Any, name: str, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name)
    with pytest.raises(InputError, match=re.escape(str(tmp_path / name))):
        fpn_backbone(SMALL, norm="bn", out_channels=8, **way(tmp_path / name))
    assert not Path("code-that-ran").exists()


@pytest.mark.parametrize("arguments", [{"checkpoint_path": 3}, {"pretrained_cfg_overlay": "file"}])
def test_an_argument_that_names_no_file_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(arguments))):
        fpn_backbone(SMALL, norm="bn", backbone_args=arguments)


def test_a_file_of_weights_is_not_read_with_download_false(tmp_path: Path) -> None:
    backbone = fpn_backbone(SMALL, download=False, out_channels=8, **_by_checkpoint_path(tmp_path / "gone.pth"))
    assert "frozen" in backbone.norm_report


def test_nothing_is_downloaded_with_download_false() -> None:
    backbone = fpn_backbone("resnet18", pretrained=True, download=False, out_channels=8)
    assert "frozen" in backbone.norm_report


def test_backbone_args_reach_the_model() -> None:
    backbone = fpn_backbone(
        "resnet18", norm="bn", out_channels=8, out_indices=[1, 2, 4], backbone_args={"output_stride": 16}
    )
    assert backbone.strides == (4, 8, 16, 32)


@pytest.mark.parametrize("name", ["resnet18", "ese_vovnet19b_dw", "vovnet27_slim", "swin_tiny_patch4_window7_224"])
def test_a_mistyped_argument_is_named(name: str) -> None:
    with pytest.raises(TypeError, match=f"'drop_pth_rate'.*{name}"):
        fpn_backbone(name, backbone_args={"drop_pth_rate": 0.1})


def test_an_argument_that_the_adapter_sets_is_refused() -> None:
    with pytest.raises(TypeError, match="'features_only'"):
        fpn_backbone("resnet18", backbone_args={"features_only": False})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rsnet18", "timm knows no model 'rsnet18'; did you mean 'resnet18'"),
        ("vit_tiny_patch16_224", "no feature map with stride 4, 8, 32"),
        ("resnet18.nothing", "tag"),
        ("swin_tiny_patch4_window7_224", "cannot take a 64×96 image.*strict_img_size"),
    ],
)
def test_a_name_that_cannot_be_used_says_what_it_lacks(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fpn_backbone(name)


def test_a_model_without_features_only_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> nn.Module:
        raise RuntimeError("features_only not implemented for Vision Transformer models.")

    monkeypatch.setattr(timm, "create_model", refuse)
    with pytest.raises(InputError, match="resnet18 lacks features_only"):
        fpn_backbone("resnet18")


def test_an_instance_made_with_features_only_is_taken_over() -> None:
    net = timm.create_model("resnet18", features_only=True)  # five maps, of which the pyramid takes four
    backbone = fpn_backbone(net, norm="bn", out_channels=8).eval()
    assert backbone.body is net
    assert backbone.strides == (4, 8, 16, 32, 64)
    assert [tuple(m.shape[2:]) for m in backbone(torch.rand(1, 3, 64, 64)).values()] == [
        (16, 16), (8, 8), (4, 4), (2, 2), (1, 1)
    ]  # fmt: skip


def test_levels_of_an_instance_can_be_chosen() -> None:
    net = timm.create_model("resnet18", features_only=True, out_indices=(1, 2, 3))
    assert fpn_backbone(net, norm="bn", out_indices=[2, 3], out_channels=8, extra_level=None).strides == (8, 16)
    with pytest.raises(InputError, match=r"out_indices has \[4\], which .* does not return .*out_indices=\[3, 4\]"):
        fpn_backbone(net, norm="bn", out_indices=[3, 4])
    with pytest.raises(InputError, match="no feature map with stride 32"):
        fpn_backbone(net, norm="bn")


def test_a_classifier_gives_the_same_features_as_its_name() -> None:
    classifier = timm.create_model("resnet18").eval()
    named = fpn_backbone("resnet18", norm="bn", out_channels=8).eval()
    named.body.load_state_dict({k: v for k, v in classifier.state_dict().items() if not k.startswith("fc.")})
    taken = fpn_backbone(classifier, norm="bn", out_channels=8).eval()
    taken.fpn.load_state_dict(named.fpn.state_dict())
    image = torch.rand(1, 3, 64, 64)
    for ours, theirs in zip(taken(image).values(), named(image).values(), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_is_no_timm_model_is_refused() -> None:
    with pytest.raises(InputError, match="no feature_info"):
        fpn_backbone(nn.Conv2d(3, 8, 1))
    with pytest.raises(InputError, match="got int"):
        fpn_backbone(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="backbone_args are for a model that is made from a name"):
        fpn_backbone(timm.create_model("resnet18", features_only=True), backbone_args={"drop_rate": 0.1})
    with pytest.raises(InputError, match=r"in_chans is 1, but .* takes 3 channels"):
        fpn_backbone(timm.create_model("resnet18", features_only=True), in_chans=1)


def test_metadata_that_is_wrong_is_found() -> None:
    net = timm.create_model("resnet18", features_only=True)
    net.feature_info.info[2]["num_chs"] = 7
    with pytest.raises(InputError, match="7 channels with stride 8, but it gives"):
        fpn_backbone(net, norm="bn")


def test_an_instance_without_normalisation_is_refused() -> None:
    net = timm.create_model("resnet18", features_only=True)
    net.pretrained_cfg = None
    with pytest.raises(InputError, match="pretrained_cfg with mean and std"):
        fpn_backbone(net, norm="bn")


def test_weights_for_images_in_0_to_255_are_refused() -> None:
    """As `vovnet convert --input bgr255` leaves them; nothing would show that the backbone sees other images."""
    net: Any = timm.create_model("resnet18", features_only=True)
    net.pretrained_cfg = {**net.pretrained_cfg, "mean": (102.9801, 115.9465, 122.7717), "std": (1.0, 1.0, 1.0)}
    with pytest.raises(InputError, match=r"0\.\.255.*legacy"):
        fpn_backbone(net, pretrained=True)


def test_building_leaves_mode_and_statistics_as_they_are() -> None:
    net = timm.create_model("resnet18", features_only=True)
    net.layer1.eval()
    modes = [m.training for m in net.modules()]
    before = {k: v.clone() for k, v in net.state_dict().items()}
    fpn_backbone(net, norm="bn", out_channels=8)
    assert [m.training for m in net.modules()] == modes
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize("in_chans", [1, 3, 4, 6])
def test_normalisation_follows_timms_first_convolution(in_chans: int) -> None:
    # The kernel reads one colour. Where timm puts it, the mean must be that colour's.
    mean = for_channels([0.1, 0.2, 0.6], in_chans)
    assert len(mean) == in_chans
    if in_chans == 1:
        assert mean == pytest.approx((0.3,))
        return
    for colour, value in enumerate([0.1, 0.2, 0.6]):
        kernel = torch.zeros(1, 3, 1, 1)
        kernel[0, colour] = 1
        adapted = adapt_input_conv(in_chans, kernel)
        assert {mean[i] for i in range(in_chans) if adapted[0, i] > 0} == {value}


@pytest.mark.parametrize("in_chans", [1, 4])
def test_other_channels_go_through(in_chans: int) -> None:
    backbone = fpn_backbone("resnet18", norm="bn", in_chans=in_chans, out_channels=8).eval()
    assert backbone.in_chans == len(backbone.mean) == len(backbone.std) == in_chans
    assert backbone(torch.rand(1, in_chans, 64, 64))["0"].shape == (1, 8, 16, 16)
