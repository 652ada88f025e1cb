"""Fused detectors against torchvision's, and their parts one by one."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from fused_parts import check_detections
from osa_reference import draw
from small_networks import detector, network
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from vovnet import fuse
from vovnet.detection import predict
from vovnet.errors import InputError
from vovnet.fusion.pyramid import FusedPyramid
from vovnet.fusion.two_stage import FusedBoxHead, FusedBoxPredictor, FusedMaskPredictor, FusedRoIAlign, FusedRpnHead
from vovnet.results.limits import LimitWarning

KEYPOINTS = {"num_keypoints": "3", "keypoint_head_convs": "2", "keypoint_head_channels": "24"}
DETECTORS: dict[str, tuple[str, dict[str, str]]] = {
    "Mask R-CNN": ("mask_rcnn_vovnet39_fpn", {}),
    "Faster R-CNN, P6 and P7": ("faster_rcnn_vovnet39_fpn", {"extra_level": "p6p7", "rpn_head_convs": "2"}),
    "box head of convolutions": ("faster_rcnn_vovnet39_fpn", {"box_head_convs": "2", "box_head_channels": "24"}),
    "legacy": ("mask_rcnn_V_39_FPN_2x", {}),
    "frozen norms, timm's network": (
        "faster_rcnn_vovnet39_fpn",
        {"backbone": "vovnet39a", "norm": "frozen_bn", "pretrained": "true"},
    ),
    "Keypoint R-CNN": ("faster_rcnn_vovnet39_fpn", {"detector": "keypoint_rcnn"} | KEYPOINTS),
    "norms in the pyramid": ("mask_rcnn_vovnet39_fpn", {"fpn_norm": "bn"}),
}


@pytest.fixture(autouse=True)
def strict() -> Iterator[None]:
    """Turn off gradients, and turn unexpected warnings into errors."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


def images() -> list[Tensor]:
    return [draw((3, 70, 100), 1, torch.float32).sigmoid(), draw((3, 96, 64), 2, torch.float32).sigmoid()]


def made(name: str) -> Any:
    recipe, model = DETECTORS[name]
    return detector(recipe, **model)


def of_type(model: nn.Module, kind: type[nn.Module]) -> list[Any]:
    return [module for module in model.modules() if type(module) is kind]


@pytest.mark.parametrize("name", DETECTORS)
def test_detections(name: str, way: str) -> None:
    model = made(name)
    fused = fuse(model)
    check_detections(fused(images()), model(images()))  # type: ignore[operator]
    check_detections(fused(images()[:1]), model(images()[:1]))  # type: ignore[operator]


def test_what_becomes_of_the_parts() -> None:
    model = made("Mask R-CNN")
    fused: Any = fuse(model)
    assert type(fused) is type(model)
    assert type(fused.rpn.head) is FusedRpnHead
    for kind, number in ((FusedPyramid, 1), (FusedRoIAlign, 2), (FusedBoxHead, 1), (FusedBoxPredictor, 1)):
        assert len(of_type(fused, kind)) == number
    assert type(fused.roi_heads.mask_predictor) is FusedMaskPredictor
    assert not of_type(fused, nn.Conv2d)
    assert not of_type(fused, nn.ConvTranspose2d)
    assert not of_type(fused, nn.Linear)


@pytest.mark.parametrize("name", ["Mask R-CNN", "legacy"])
def test_attributes_and_prediction(name: str, way: str) -> None:
    model = made(name)
    model.categories = [{"id": 3 * i, "name": f"thing {i}"} for i in range(1, 5)]
    fused: Any = fuse(model)
    assert fused.categories == model.categories
    assert fused.backbone.out_channels == model.backbone.out_channels
    assert fused.backbone.strides == model.backbone.strides
    integers = [image.mul(255).to(torch.uint8) for image in images()]
    with pytest.warns(LimitWarning, match="30 detections"):
        expected = predict(model, integers)
    with pytest.warns(LimitWarning, match="30 detections"):
        found = predict(fused, integers)
    for some, others in zip(found, expected, strict=True):
        assert len(some) == len(others)
        assert {one["category"] for one in some} == {one["category"] for one in others}
    assert not any(module.training for module in fused.modules())


def test_copies_and_pickles(way: str) -> None:
    model = made("Mask R-CNN")
    fused = fuse(model)
    fused(images())
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused))):
        check_detections(other(images()), model(images()))


def test_group_norm_stays_without_its_convolution(way: str) -> None:
    model = detector("scratch_mask_rcnn_V_39_FPN_3x_gn")
    fused = fuse(model)
    assert of_type(fused, nn.GroupNorm)
    assert not of_type(fused, nn.Conv2d)
    check_detections(fused(images()), model(images()))


def test_training_is_refused(way: str) -> None:
    with pytest.raises(InputError, match="train the original"):
        fuse(made("Mask R-CNN")).train()


def seeded(module: nn.Module) -> nn.Module:
    """Return the part with biases that are not zero."""
    generator = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / max(1, parameter[0].numel()) ** 0.5)
    return module.eval()


def check_part(module: nn.Module, *inputs: Any, precision: str = "fp32", bound: float = 1e-5) -> None:
    """Check that the fused part returns float32, equal to the part in float64."""
    got = fuse(module, precision)(*inputs)
    exact = copy.deepcopy(module).double()(*_map(inputs, lambda x: x.double()))
    for one, true in zip(_tensors(got), _tensors(exact), strict=True):
        assert one.dtype == torch.float32
        assert one.shape == true.shape
        assert float((one - true).abs().max()) <= bound * float(true.abs().max())


def _map(value: Any, change: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _map(entry, change) for key, entry in value.items()}
    return type(value)(_map(entry, change) for entry in value)


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [t for entry in (value.values() if isinstance(value, dict) else value) for t in _tensors(entry)]


PRECISIONS = {"fp32": 1e-5, "bf16": 3e-2}
LEVELS = {"0": (20, 33, 41), "1": (24, 17, 21), "2": (40, 9, 11)}
"""Channels, height and width of each level. They are odd, so that the coarser level is not repeated exactly twice."""


def levels(channels: int | None = None) -> dict[str, Tensor]:
    return {key: draw((2, channels or c, h, w), i, torch.float32) for i, (key, (c, h, w)) in enumerate(LEVELS.items())}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("extra", [None, "pool", "p6p7", "p6p7 from the backbone"])
@pytest.mark.parametrize("norm", [None, nn.BatchNorm2d])
def test_pyramid(norm: Any, extra: str | None, precision: str, way: str) -> None:
    blocks: dict[str | None, Any] = {
        None: None,
        "pool": LastLevelMaxPool(),
        "p6p7": LastLevelP6P7(32, 32),
        "p6p7 from the backbone": LastLevelP6P7(40, 32),
    }
    fpn = FeaturePyramidNetwork([c for c, _, _ in LEVELS.values()], 32, blocks[extra], norm)
    seeded(fpn)
    fused: Any = fuse(fpn, precision)
    assert type(fused) is FusedPyramid
    assert list(fused(levels())) == list(fpn(levels()))
    check_part(fpn, levels(), precision=precision, bound=PRECISIONS[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("convs", [1, 2])
def test_rpn_head(convs: int, precision: str, way: str) -> None:
    head = seeded(RPNHead(32, 3, conv_depth=convs))
    check_part(head, list(levels(32).values()), precision=precision, bound=PRECISIONS[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("count", [0, 1, 37])
def test_box_head_and_predictor(count: int, precision: str, way: str) -> None:
    head = seeded(nn.Sequential(TwoMLPHead(24 * 7 * 7, 40), FastRCNNPredictor(40, 5)))
    x = draw((count, 24, 7, 7), 0, torch.float32)
    if not count:
        assert [part.shape for part in fuse(head, precision)(x)] == [(0, 5), (0, 20)]
        return
    for layout in (torch.contiguous_format, torch.channels_last):
        check_part(head, x.contiguous(memory_format=layout), precision=precision, bound=PRECISIONS[precision])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("count", [0, 1, 9])
def test_mask_predictor(count: int, precision: str, way: str) -> None:
    predictor = seeded(MaskRCNNPredictor(24, 18, 5))
    x = draw((count, 24, 14, 14), 0, torch.float32)
    if not count:
        assert fuse(predictor, precision)(x).shape == (0, 5, 28, 28)
        return
    check_part(predictor, x, precision=precision, bound=PRECISIONS[precision])


def boxes(count: int) -> Tensor:
    corners = draw((count, 2), 3, torch.float32).abs() * 40
    return torch.cat((corners, corners + draw((count, 2), 4, torch.float32).abs() * 90 + 1), dim=1)


@pytest.mark.parametrize("counts", [(5, 0), (0, 0), (30, 7)])
@pytest.mark.parametrize("names", [["0", "1", "2"], ["1"]])
@pytest.mark.parametrize("samples", [2, 0])
def test_roi_align(samples: int, names: list[str], counts: tuple[int, int], way: str) -> None:
    pool = MultiScaleRoIAlign(names, output_size=(7, 5), sampling_ratio=samples).eval()
    fused = fuse(pool)
    places = [boxes(count) for count in counts]
    shapes = [(132, 164), (120, 150)]
    before = dict(vars(pool))
    for _ in range(2):  # the first call finds the scales
        out = fused(levels(16), places, shapes)
        assert vars(pool).keys() == before.keys()
        expected = pool(levels(16), places, shapes)
        assert out.shape == expected.shape
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
        pool.scales = None
    assert vars(fused)["scales"] is not None


def test_roi_align_of_other_types_and_with_gradients(way: str) -> None:
    pool = MultiScaleRoIAlign(["0", "1", "2"], output_size=7, sampling_ratio=2).eval()
    fused = fuse(pool)
    places, shapes = [boxes(4), boxes(3)], [(132, 164)] * 2
    wide = {key: value.double() for key, value in levels(16).items()}
    torch.testing.assert_close(
        fused(wide, [b.double() for b in places], shapes), pool(wide, [b.double() for b in places], shapes)
    )
    with torch.enable_grad():
        grads = []
        for one in (pool, fused):
            maps = {key: value.requires_grad_() for key, value in levels(16).items()}
            one(maps, places, shapes).square().sum().backward()
            grads.append(maps["0"].grad)
    torch.testing.assert_close(*grads)


def test_roi_align_of_a_box_that_is_none(way: str) -> None:
    """An invalid box has no level; torchvision returns zeros for it."""
    places = [torch.tensor([[10.0, 10, 50, 40], [50, 10, 40, 40]]), torch.zeros(0, 4)]
    pool = MultiScaleRoIAlign(["0", "1"], 7, 2).eval()
    got, expected = (one(levels(16), places, [(96, 128)] * 2) for one in (fuse(pool), pool))
    assert not expected[1].any()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


PART = "its predictors have hooks"


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda: (h := RPNHead(32, 3), h.cls_logits.register_forward_hook(lambda *_: None))[0], PART),
        (lambda: (h := FastRCNNPredictor(8, 3), h.bbox_pred.register_forward_hook(lambda *_: None))[0], PART),
        (lambda: (h := TwoMLPHead(8, 3), h.fc6.register_forward_hook(lambda *_: None))[0], "not plain linear"),
        (lambda: (h := MaskRCNNPredictor(8, 3, 2), h.conv5_mask.register_forward_hook(lambda *_: None))[0], "hooks"),
        (lambda: (h := MaskRCNNPredictor(8, 3, 2), setattr(h.conv5_mask, "stride", (1, 1)))[0], "not a plain one of"),
        (lambda: (h := MaskRCNNPredictor(8, 3, 2), setattr(h.conv5_mask, "dilation", (2, 2)))[0], "not a plain one of"),
        (lambda: (h := RPNHead(32, 3), setattr(h, "bbox_pred", nn.Conv2d(32, 12, 3, padding=1)))[0], "not plain 1×1"),
        (lambda: (h := MultiScaleRoIAlign(["0"], 7, 2), h.register_forward_hook(lambda *_: None))[0], "hooks"),
    ],
)
def test_parts_that_are_watched_or_changed_stay(make: Any, why: str) -> None:
    part = make().eval()
    with pytest.warns(UserWarning, match=why):
        fused = fuse(part)
    assert type(fused) is type(part)


def test_bfloat16_detectors(way: str) -> None:
    """Maps are as exact as under autocast, and stay bfloat16 for heads that take it; boxes and scores are float32."""
    model = made("Mask R-CNN")
    fused: Any = fuse(model, precision="bf16")
    x = draw((2, 3, 96, 128), 1, torch.float32)
    exact = copy.deepcopy(model.backbone).double()(x.double())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        eager = model.backbone(x)
    for key, value in fused.backbone(x).items():
        assert value.dtype == torch.bfloat16
        assert _rms(value - exact[key]) <= 1.1 * _rms(eager[key] - exact[key])
    with pytest.raises(InputError, match="model: it is fused already, with precision='bf16'"):
        fuse(fused)
    for found in fused(images()):
        assert {found[key].dtype for key in ("boxes", "scores", "masks")} == {torch.float32}
        assert len(found["boxes"]) > 5


def test_bfloat16_detectors_find_the_same_with_maps_in_float32(way: str) -> None:
    """Heads round what they take to bfloat16, so it does not matter whether the maps come in float32."""
    model = made("Mask R-CNN")
    fused: Any = fuse(model, precision="bf16")
    for image in images():
        found = fused([image])[0]
        fused.backbone.fpn.keeps_bfloat16 = False
        wide = fused([image])[0]
        fused.backbone.fpn.keeps_bfloat16 = True
        for key, value in found.items():
            torch.testing.assert_close(value, wide[key], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("part", ["rpn.head", "roi_heads.mask_roi_pool"])
def test_bfloat16_detectors_with_a_head_that_is_left_alone(way: str, part: str) -> None:
    """A part that is not fused takes float32 maps."""
    model = made("Mask R-CNN")
    seen: list[Any] = []
    model.get_submodule(part).register_forward_hook(lambda module, inputs, _: seen.append(inputs[0]))
    with pytest.warns(UserWarning, match=f"left as they are: {part}"):
        fused: Any = fuse(model, precision="bf16")
    assert all(len(found["boxes"]) for found in fused(images()))
    maps = seen[0].values() if isinstance(seen[0], dict) else seen[0]
    assert {x.dtype for x in maps} == {torch.float32}


class OneMap(nn.Module):
    """A backbone of one level."""

    def __init__(self) -> None:
        super().__init__()
        self.body: Any = network("ours", features_only=True, out_indices=(3,))
        self.out_channels = self.body.feature_info.channels()[-1]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.body(x)[0]
        return out


def test_bfloat16_detectors_of_one_map(way: str) -> None:
    torch.manual_seed(0)
    anchors = AnchorGenerator(((32, 64),), ((1.0,),))
    model = FasterRCNN(OneMap(), 4, min_size=96, max_size=128, rpn_anchor_generator=anchors).eval()
    fused: Any = fuse(model, precision="bf16")
    assert fused.backbone(draw((1, 3, 96, 128), 1, torch.float32)).dtype == torch.float32
    for found in fused(images()):
        assert {found[key].dtype for key in ("boxes", "scores")} == {torch.float32}


def test_bfloat16_detectors_with_a_pyramid_that_is_left_alone(way: str) -> None:
    model = made("Mask R-CNN")
    model.backbone.fpn.layer_blocks[0].register_forward_hook(lambda *_: None)
    with pytest.warns(UserWarning, match="left as they are: backbone.fpn.layer_blocks.0"):
        fused: Any = fuse(model, precision="bf16")
    x = draw((2, 3, 96, 128), 1, torch.float32)
    assert {value.dtype for value in fused.backbone(x).values()} == {torch.float32}
    assert all(len(found["boxes"]) for found in fused(images()))


def test_a_pyramid_whose_lateral_convolutions_see_neighbours(way: str) -> None:
    """The kernels for 3×3 windows add no residual; PyTorch does."""
    pyramid = FeaturePyramidNetwork([16, 16], 32)
    pyramid.inner_blocks[0] = Conv2dNormActivation(16, 32, 3, norm_layer=None, activation_layer=None)
    maps = {str(i): draw((1, 16, size, size), i, torch.float32) for i, size in enumerate((32, 16))}
    check_part(pyramid.eval(), maps)


def _rms(x: Tensor) -> float:
    return float(x.double().square().mean().sqrt())
