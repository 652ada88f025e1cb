"""The feature pyramid on every model that the documentation names."""

import copy

import pytest
import timm
import torch
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FeaturePyramidNetwork

from vovnet.adapters import FpnBackbone, fpn_backbone

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
MODELS = {
    "vovnet27_slim": ({}, IMAGENET),
    "vovnet39": ({}, IMAGENET),
    "resnet50": ({}, IMAGENET),
    "ese_vovnet19b_dw": ({}, IMAGENET),
    "mobilenetv3_large_100": ({}, IMAGENET),
    "tf_efficientnet_lite0": ({}, HALF),
    "pvt_v2_b0": ({}, IMAGENET),
    "swin_tiny_patch4_window7_224": ({"strict_img_size": False}, IMAGENET),
}


def build(name: str, **kwargs: object) -> FpnBackbone:
    options = {"out_channels": 16, "norm": "bn", "backbone_args": MODELS.get(name, ({},))[0], **kwargs}
    return fpn_backbone(name, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", MODELS)
def test_levels_strides_and_normalisation_of_any_model(name: str) -> None:
    backbone = build(name).eval()
    levels = backbone(torch.rand(1, 3, 64, 128))
    assert list(levels) == list(backbone.level_names) == ["0", "1", "2", "3", "pool"]
    assert backbone.strides == (4, 8, 16, 32, 64)
    for level, stride in zip(levels.values(), backbone.strides, strict=True):
        assert level.shape == (1, 16, 64 // stride, 128 // stride)
    assert (backbone.mean, backbone.std) == MODELS[name][1]
    assert backbone.in_chans == 3
    assert backbone.out_channels == 16


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_a_gradient(name: str) -> None:
    backbone = build(name).train()  # DistributedDataParallel fails for parameters without a gradient
    sum(level.sum() for level in backbone(torch.rand(2, 3, 64, 64)).values()).backward()
    assert [k for k, p in backbone.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ["vovnet27_slim", "swin_tiny_patch4_window7_224", "tf_efficientnet_lite0"])
def test_exported_backbone_computes_the_same(name: str) -> None:
    backbone = build(name).eval()
    exported = torch.export.export(backbone, (torch.rand(1, 3, 64, 96),)).module()
    image = torch.rand(1, 3, 64, 96)
    levels = exported(image)
    for level, expected in backbone(image).items():
        torch.testing.assert_close(levels[level], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("name", ["vovnet27_slim", "swin_tiny_patch4_window7_224", "mobilenetv3_large_100"])
def test_scripted_backbone_computes_the_same(name: str) -> None:
    backbone = build(name, extra_level="p6p7").eval()
    scripted = torch.jit.script(backbone)
    image = torch.rand(1, 3, 64, 96)
    for (level, value), (expected_level, expected) in zip(
        scripted(image).items(), backbone(image).items(), strict=True
    ):
        assert level == expected_level
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


def test_it_computes_what_torchvisions_backbone_computes() -> None:
    theirs = resnet_fpn_backbone(backbone_name="resnet18", weights=None).eval()
    for name, value in theirs.body.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
    ours = fpn_backbone("resnet18", pretrained=True, download=False)
    ours.eval().load_state_dict(theirs.state_dict())  # the keys are the same, too
    image = torch.rand(2, 3, 96, 64)
    found, expected = ours(image), theirs(image)
    assert list(found) == list(expected)
    for level in expected:
        torch.testing.assert_close(found[level], expected[level], rtol=1e-4, atol=1e-5)


def test_maps_with_channels_last_are_permuted() -> None:
    name = "swin_tiny_patch4_window7_224"
    backbone = build(name, extra_level=None).eval()
    net = copy.deepcopy(backbone.body)
    image = torch.rand(1, 3, 64, 96)
    channels = timm.create_model(name, features_only=True).feature_info.channels()
    pyramid = FeaturePyramidNetwork(channels, 16).eval()
    pyramid.load_state_dict(backbone.fpn.state_dict())
    expected = pyramid({str(i): m.permute(0, 3, 1, 2) for i, m in enumerate(net(image))})
    for level, value in backbone(image).items():
        torch.testing.assert_close(value, expected[level])


@pytest.mark.parametrize(
    ("extra_level", "names", "strides"), [(None, (), ()), ("pool", ("pool",), (32,)), ("p6p7", ("p6", "p7"), (32, 64))]
)
def test_extra_levels(extra_level: str | None, names: tuple[str, ...], strides: tuple[int, ...]) -> None:
    backbone = build("resnet18", extra_level=extra_level, out_indices=[2, 3]).eval()
    assert backbone.level_names == ("0", "1", *names)
    assert backbone.roi_level_names == ("0", "1")
    assert backbone.strides == (8, 16, *strides)
    levels = backbone(torch.rand(1, 3, 64, 64))
    assert [level.shape[-1] for level in levels.values()] == [64 // s for s in backbone.strides]


def test_default_width_is_256() -> None:
    assert fpn_backbone("resnet18", norm="bn").out_channels == 256
    with pytest.raises(ValueError, match="out_channels must be a positive integer, got 0"):
        fpn_backbone("resnet18", out_channels=0)
