"""The counts of ``torch.utils.flop_counter``: the operators against PyTorch's own, networks before and after."""

import math
from collections.abc import Callable

import pytest
import timm
import torch
import torch.nn.functional as F
from small_networks import detector, network
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import vovnet
from vovnet.ops import conv_affine_relu, osa_aggregate

SIDE = 64
FIRST_CONV = 2 * (SIDE // 2) ** 2 * 64 * 3 * 9
"""Operations of the stem's first convolution: two for each product of an output pixel, 64 × 3 channels and 3×3 taps."""
SECOND_CONV = 2 * (SIDE // 2) ** 2 * 64 * 64 * 9


def count(call: Callable[[], Tensor]) -> tuple[int, int]:
    """Return the operations of a call and, if its result has a gradient, of its backward pass."""
    with FlopCounterMode(display=False) as forward:
        out = call()
    with FlopCounterMode(display=False) as backward:
        if out.requires_grad:
            out.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("wanted", [(True, True, True), (True, False, False), (False, False, True), (False,) * 3])
def test_a_convolution_counts_as_pytorchs(groups: int, wanted: tuple[bool, bool, bool]) -> None:
    """Also where only the norm's scale has a gradient: it is computed from the weight's."""
    x, weight, scale = torch.rand(2, 6, 9, 11), torch.rand(8, 6 // groups, 3, 3), torch.rand(8)
    geometry = {"stride": 2, "padding": 1, "dilation": 1, "groups": groups}
    for tensor, want in zip((x, weight, scale), wanted, strict=True):
        tensor.requires_grad_(want)
    own = count(lambda: conv_affine_relu(x, weight, scale, **geometry))
    plain = count(lambda: F.conv2d(x, weight * scale[:, None, None, None], **geometry))
    assert own == plain
    assert own[0] == 2 * 2 * 5 * 6 * math.prod(weight.shape)


@pytest.mark.parametrize("relu", [True, False])
def test_an_aggregation_counts_as_a_convolution_of_the_concatenation(relu: bool) -> None:
    maps = [torch.rand(2, channels, 5, 7, requires_grad=True) for channels in (3, 8, 1)]
    weight = torch.rand(10, 12, 1, 1, requires_grad=True)
    own = count(lambda: osa_aggregate(maps, weight, relu=relu))
    assert own == count(lambda: F.conv2d(torch.cat(maps, 1), weight))
    assert own[0] == 2 * 2 * 5 * 7 * 10 * 12


def test_an_aggregation_counts_only_gradients_that_are_wanted() -> None:
    maps = [torch.rand(2, channels, 5, 7) for channels in (3, 8, 1)]
    maps[1].requires_grad_()
    weight = torch.rand(10, 12, 1, 1)
    assert count(lambda: osa_aggregate(maps, weight))[1] == 2 * 2 * 5 * 7 * 10 * 8
    weight.requires_grad_()
    assert count(lambda: osa_aggregate(maps, weight))[1] == 2 * 2 * 5 * 7 * 10 * (8 + 12)


@pytest.mark.parametrize("name", ["ours", "ours, swish", "vovnet39a, residual", "ese_vovnet19b_dw"])
def test_a_fused_copy_counts_as_the_model(name: str, way: str) -> None:
    model, image = network(name).eval(), torch.rand(2, 3, SIDE, SIDE)
    fused = vovnet.fuse(model)
    with torch.no_grad():
        expected = count(lambda: model(image))
        assert count(lambda: fused(image)) == expected
        assert count(lambda: fused.forward_features(image)) == count(lambda: model.forward_features(image))
    assert expected[0] > 1e6


def test_one_convolution_of_a_fused_copy_counts(way: str) -> None:
    stem = network().stem.eval()
    x = torch.rand(2, 3, SIDE, SIDE)
    with torch.no_grad():
        assert count(lambda: vovnet.fuse(stem[0])(x)) == count(lambda: stem[0](x)) == (2 * 2 * 32 * 32 * 8 * 27, 0)


def test_a_fused_one_stage_detector_counts_as_the_model(way: str) -> None:
    model, images = detector("retinanet_vovnet39_fpn"), [torch.rand(3, 70, 100)]
    fused = vovnet.fuse(model)
    with torch.no_grad():
        assert count(lambda: fused(images)[0]["scores"]) == count(lambda: model(images)[0]["scores"])


@pytest.mark.parametrize(
    ("name", "shape", "times"),
    [
        ("backbone.body", (1, 3, 70, 100), 1),
        ("rpn.head.conv", (1, 32, 7, 9), 1),
        ("roi_heads.box_head", (5, 32, 7, 7), 1),
        ("roi_heads.mask_predictor", (5, 256, 14, 14), 1),
        ("roi_heads.keypoint_predictor", (5, 24, 14, 14), 36 / 16),
    ],
)
def test_the_parts_of_fused_detectors_count_as_the_models(
    name: str, shape: tuple[int, ...], times: float, way: str
) -> None:
    """Whole ones differ in the number of boxes that the heads get, which depends on rounding."""
    keypoints = {"detector": "keypoint_rcnn", "num_keypoints": "3", "keypoint_head_channels": "24"}
    model = detector("faster_rcnn_vovnet39_fpn", **keypoints) if "keypoint" in name else detector()
    plain, fused = (kind.get_submodule(name) for kind in (model, vovnet.fuse(model)))
    x = torch.rand(shape)

    def counted(part: nn.Module) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            part(x)
        return int(counter.get_total_flops())

    assert counted(fused) == counted(plain) * times > 0


@pytest.mark.parametrize("memory", ["normal", "low"])
@pytest.mark.parametrize("name", ["vovnet27_slim", "vovnet39a"])
def test_a_model_that_keeps_less_counts_as_before_and_what_it_computes_again(name: str, memory: str) -> None:
    """With fixed norms, ``normal`` computes the first convolution again; ``low`` the second, and the first twice."""
    image = torch.rand(1, 3, SIDE, SIDE)
    plain, lean = (timm.create_model(name, num_classes=10).eval() for _ in range(2))
    vovnet.memory_efficient(lean, memory=memory)
    forward, backward = count(lambda: plain(image))
    again = FIRST_CONV + (FIRST_CONV + SECOND_CONV if memory == "low" else 0)
    assert count(lambda: lean(image)) == (forward, backward + again)
    plain.train(), lean.train()
    assert count(lambda: lean(torch.cat([image, image]))) == count(lambda: plain(torch.cat([image, image])))


def test_counts_of_models_without_memory() -> None:
    """On the device ``meta``, operators have shapes alone."""
    with torch.device("meta"):
        model = vovnet.memory_efficient(timm.create_model("vovnet39")).eval()
        forward, _ = count(lambda: model(torch.empty(1, 3, 224, 224)))
    assert forward == 2 * 7_072_227_328
