"""The recorded outputs: equal everywhere, and different for any network that is another."""

from __future__ import annotations

import copy
import hashlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import vovnet  # noqa: F401 (registers our models)
from vovnet.detection.checkpoints.config_json import compose_config
from vovnet.detection.checkpoints.folder import attach, load_detector, save_detector
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.models.build import build_detector
from vovnet.errors import InputError
from vovnet.hub.reference_outputs import compare_outputs, image, record_outputs

TINY = {
    "backbone": "vovnet27_slim",
    "fpn_channels": 16,
    "box_representation_size": 32,
    "num_classes": 3,
    "min_size": 64,
    "max_size": 96,
}
MASK = {"detector": "mask_rcnn", "mask_head_channels": 8, "mask_head_convs": 2}


def lively(model: Any) -> nn.Module:
    """With weights of which every one matters: no zeros, and norms that fit what comes in, as after a training."""
    torch.manual_seed(0)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if value.dim() > 1:
                value.copy_(torch.randn_like(value) * math.sqrt(1.6 / value[0].numel()))
            else:
                value.copy_(0.2 * torch.randn_like(value) + (1 if key.endswith("weight") else 0))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        is_detector = hasattr(model, "backbone")
        noise = model.transform.normalize(torch.rand(3, 128, 128))[None] if is_detector else torch.randn(2, 3, 128, 128)
        (model.backbone if is_detector else model.forward_features)(noise)  # in training mode: the norms take it in
    return model.eval()


def detector(**changes: Any) -> nn.Module:
    recipe = ModelRecipe(**{**TINY, **changes})
    model = lively(build_detector(recipe, download=False))
    categories = [{"id": i, "name": str(i)} for i in (1, 2, 3)]
    return attach(model, compose_config(model, recipe, categories))


@pytest.fixture(scope="module")
def mask_rcnn() -> nn.Module:
    return detector(**MASK)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    overlay = {"input_size": (3, 64, 64)}
    return lively(timm.create_model("vovnet27_slim", num_classes=5, pretrained_cfg_overlay=overlay))


def refused(model: nn.Module, recorded: Any) -> str:
    with pytest.raises(InputError, match=r"^here: ") as error:
        compare_outputs(model, recorded, "here")
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("shape", "checksum"),
    [
        ((3, 192, 256), "42f9884c18fd9a21b8644b0f00a79e3190a3fe5d1badb1bfbd2748d1d5971d9c"),
        ((1, 224, 224), "8b4e5098c4b49c9be22e7f4174bc21a9c9a2eeda8eb09713bd5e67738b28271a"),
        ((5, 17, 33), "8f0064ba420f01ce294b11f65e8f9a3ed92a5898ca0ea783ddfad85ec5172ac7"),
    ],
)
def test_the_image_is_the_same_everywhere(shape: tuple[int, int, int], checksum: str) -> None:
    """Of its bytes; the checksums were made with Python's integers alone. Another image would refuse all folders."""
    made = image(*shape)
    assert made.shape == shape
    assert made.dtype == torch.float32
    numbers = (made * 255).round()
    assert torch.equal(made, numbers / 255)
    assert hashlib.sha256(numbers.to(torch.uint8).numpy().tobytes()).hexdigest() == checksum


def test_the_image_looks_different_in_every_channel_and_direction() -> None:
    made = image(4, 64, 64)
    assert all(not torch.equal(a, b) for i, a in enumerate(made) for b in made[:i])
    views = [made, made.flip(1), made.flip(2), made.transpose(1, 2)]
    assert all(not torch.equal(a, b) for i, a in enumerate(views) for b in views[:i])


def test_a_detectors_parts_are_all_recorded(mask_rcnn: nn.Module) -> None:
    recorded = record_outputs(mask_rcnn)
    assert {name.partition(".")[0] for name in recorded} == {"pyramid", "rpn", "box", "mask"}
    assert recorded["box.logits"]["shape"] == [4, 4]
    assert recorded["mask.logits"]["shape"] == [4, 4, 28, 28]
    assert set(record_outputs(detector())) == {name for name in recorded if not name.startswith("mask")}
    assert len(json.dumps(recorded)) < 50_000


KINDS = {
    "keypoint_rcnn": (
        {"num_keypoints": 5, "keypoint_head_convs": 1, "keypoint_head_channels": 8},
        "roi_heads.keypoint_",
    ),
    "retinanet": ({}, "head."),
    "fcos": ({}, "head."),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_stored_detector_of_each_kind_is_told_from_another(kind: str, tmp_path: Path) -> None:
    changes, part = KINDS[kind]
    model = ModelRecipe(**{**TINY, **changes, "detector": kind})  # type: ignore[arg-type]
    made = lively(build_detector(model))
    save_detector(tmp_path, made, model, [{"id": i, "name": str(i)} for i in (1, 2, 3)])
    recorded = record_outputs(load_detector(tmp_path))
    assert compare_outputs(load_detector(tmp_path), recorded, "here") == 0
    other = load_detector(tmp_path)
    # Not biases: a group norm behind a convolution takes out what its bias adds.
    for key in (key for key, _ in other.named_parameters() if key.startswith(part) and key.endswith("weight")):
        wrong = copy.deepcopy(other)
        wrong.get_parameter(key).data.add_(0.3)
        with pytest.raises(InputError):
            compare_outputs(wrong, recorded, "here")


def test_recorded_values_are_those_of_the_network(network: Any) -> None:
    """Held to a forward pass that knows nothing of probes, after a trip through JSON."""
    recorded = json.loads(json.dumps(record_outputs(network)))
    with torch.inference_mode():
        logits = network((image(3, 64, 64)[None] - 0.5) / 0.25)
    assert recorded["logits"]["shape"] == [1, 5]
    assert recorded["logits"]["values"] == pytest.approx(logits[0].tolist(), rel=1e-5)
    assert recorded["logits"]["largest"] == pytest.approx(float(logits.abs().max()), rel=1e-5)


def test_a_backbone_without_a_classifier_has_features_alone() -> None:
    assert set(record_outputs(timm.create_model("vovnet27_slim", num_classes=0).eval())) == {"features"}


def test_other_channels() -> None:
    model = timm.create_model("vovnet27_slim", num_classes=2, in_chans=5).eval()
    assert compare_outputs(model, record_outputs(model), "here") == 0


@pytest.mark.parametrize("kind", ["mask_rcnn", "network"])
def test_the_same_network_differs_by_nothing(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    assert compare_outputs(model, json.loads(json.dumps(record_outputs(model))), "here") == 0


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_other_numbers_of_threads_make_no_difference(threads: int, mask_rcnn: nn.Module) -> None:
    before = torch.get_num_threads()
    recorded = record_outputs(mask_rcnn)
    try:
        torch.set_num_threads(threads)
        assert compare_outputs(mask_rcnn, recorded, "here") < 1e-4
    finally:
        torch.set_num_threads(before)


def test_the_last_bits_make_no_difference(mask_rcnn: nn.Module) -> None:
    """Other machines add in another order: noise of 1e-5 on every recorded value, and other algorithms here."""
    recorded = record_outputs(mask_rcnn)
    with torch.backends.mkldnn.flags(enabled=False):
        assert compare_outputs(mask_rcnn, recorded, "here") < 1e-3
    channels_last: Any = copy.deepcopy(mask_rcnn)
    assert compare_outputs(channels_last.to(memory_format=torch.channels_last), recorded, "here") < 1e-3
    torch.manual_seed(0)
    for entry in recorded.values():
        noise = torch.randn(len(entry["values"])) * 1e-5 * entry["largest"]
        entry["values"] = [value + float(n) for value, n in zip(entry["values"], noise, strict=True)]
    assert 0 < compare_outputs(mask_rcnn, recorded, "here") < 1e-4


def tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for key, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point() and "anchor" not in key:
            yield key, value


def unseen(model: nn.Module, change: Callable[[Tensor], Tensor]) -> list[str]:
    """The tensors of which a change goes unnoticed, one at a time."""
    recorded, blind = record_outputs(model), []
    for key, value in tensors(model):
        good = value.detach().clone()
        with torch.no_grad():
            value.copy_(change(good))
            try:
                compare_outputs(model, recorded, "here")
                blind.append(key)
            except InputError:
                pass
            value.copy_(good)
    assert compare_outputs(model, recorded, "here") == 0  # all are back in their places
    return blind


def test_one_wrong_tensor_of_a_detector_is_seen(mask_rcnn: nn.Module) -> None:
    assert len(list(tensors(mask_rcnn))) > 100
    assert unseen(mask_rcnn, lambda value: value * 1.1) == []


def test_a_detector_with_legacy_conventions() -> None:
    model: Any = detector(conventions="legacy")
    recorded = record_outputs(model)
    assert compare_outputs(model, recorded, "here") == 0
    with torch.no_grad():
        model.rpn.head.bbox_pred.bias[1] += 1
    assert "rpn.deltas differs" in refused(model, recorded)


def test_one_wrong_tensor_of_a_classifier_is_seen(network: nn.Module) -> None:
    assert len(list(tensors(network))) > 60
    assert unseen(network, lambda value: value * 1.1) == []


def test_one_wrong_output_channel_is_seen(network: nn.Module) -> None:
    """A permutation leaves all magnitudes as they were."""
    assert unseen(network, lambda value: value.roll(1, 0)) == []


def test_blue_and_red_in_each_others_place_are_seen(mask_rcnn: nn.Module, network: nn.Module) -> None:
    for model in (mask_rcnn, network):
        other = copy.deepcopy(model)
        first = next(m for m in other.modules() if isinstance(m, nn.Conv2d))
        with torch.no_grad():
            first.weight.copy_(first.weight.flip(1))
        assert "computes something else than recorded" in refused(other, record_outputs(model))


def test_another_normalisation_is_seen(mask_rcnn: Any) -> None:
    other: Any = copy.deepcopy(mask_rcnn)
    other.transform.image_mean = [0.5, 0.5, 0.5]
    assert "pyramid" in refused(other, record_outputs(mask_rcnn))


def test_what_differs_is_named(mask_rcnn: Any) -> None:
    other: Any = copy.deepcopy(mask_rcnn)
    with torch.no_grad():
        other.roi_heads.box_predictor.cls_score.bias.add_(1)
    message = refused(other, record_outputs(mask_rcnn))
    assert "box.logits differs by" in message
    assert not any(name in message for name in ("pyramid", "rpn", "mask", "box.deltas"))


def changed(entry: str, **changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda recorded: recorded[entry].update(changes)


def replace_value(position: int, value: Any) -> Callable[[dict[str, Any]], Any]:
    def change(recorded: dict[str, Any]) -> None:
        recorded["features"]["values"][position] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda recorded: recorded.pop("logits"),
        lambda recorded: recorded.update(more=recorded["logits"]),
        lambda recorded: recorded.update(logits=None),
        lambda recorded: recorded.update(logits=[1.0]),
        lambda recorded: recorded["logits"].pop("values"),
        lambda recorded: recorded["logits"].pop("shape"),
        changed("logits", values=[]),
        changed("logits", values="1.0"),
        changed("logits", values=[0.0] * 5),
        changed("logits", shape=[5]),
        changed("features", shape=[1, 512, 4, 1]),
        changed("features", largest=1e9),
        replace_value(0, None),
        replace_value(0, "1.0"),
        replace_value(3, True),
        replace_value(0, 1e30),
        replace_value(0, math.nan),
        replace_value(20, math.nan),
        replace_value(47, math.inf),
        replace_value(1, 10**400),
    ],
)
def test_records_of_something_else_are_refused(change: Callable[[dict[str, Any]], Any], network: nn.Module) -> None:
    recorded = record_outputs(network)
    assert len(recorded["features"]["values"]) == 48
    change(recorded)
    refused(network, recorded)


def test_weights_that_diverged_are_not_recorded(network: nn.Module) -> None:
    other: Any = copy.deepcopy(network)
    with torch.no_grad():
        other.head.fc.bias[2] = math.nan
    with pytest.raises(InputError, match="NaN or infinity in the outputs logits"):
        record_outputs(other)


def test_a_network_with_a_last_layer_of_zeros_is_recorded() -> None:
    model: Any = timm.create_model("vovnet27_slim", num_classes=3).eval()
    nn.init.zeros_(model.head.fc.weight)
    nn.init.zeros_(model.head.fc.bias)
    recorded = record_outputs(model)
    assert compare_outputs(model, recorded, "here") == 0
    nn.init.constant_(model.head.fc.bias, 0.1)
    assert "logits" in refused(model, recorded)
