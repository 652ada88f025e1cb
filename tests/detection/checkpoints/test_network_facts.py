"""Which backbones a detector can start from: their input, their strides, the epsilon of their norms."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from vovnet.detection.checkpoints.folder import save_detector
from vovnet.detection.checkpoints.initialize import load_matching
from vovnet.detection.checkpoints.network_facts import NetworkFacts, NetworkInput, check_start, read_facts
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.models.build import build_detector
from vovnet.errors import InputError

BGR255 = NetworkInput("bgr", [0.0, 255.0], [102.9801, 115.9465, 122.7717], [1.0, 1.0, 1.0])
DETECTRON2 = NetworkInput("bgr", [0.0, 255.0], [103.53, 116.28, 123.675], [57.375, 57.12, 58.395])
SMALL: dict[str, Any] = {"fpn_channels": 8, "box_representation_size": 8, "num_classes": 2}


def detector(backbone: str = "vovnet27_slim", **settings: Any) -> Any:
    """A detector without memory."""
    with torch.device("meta"):
        return build_detector(ModelRecipe(backbone=backbone, **{**SMALL, **settings}), download=False)


def test_a_folder_of_timm_has_none() -> None:
    assert read_facts({"architecture": "resnet50", "pretrained_cfg": {}}, Path("config.json")) == NetworkFacts()
    assert NetworkFacts().to_json() == {}


@pytest.mark.parametrize(
    "facts",
    [NetworkFacts(BGR255, 1e-5, False), NetworkFacts(DETECTRON2), NetworkFacts(stride_in_1x1=True)],
    ids=["all", "input", "stride"],
)
def test_they_survive_writing_and_reading(facts: NetworkFacts) -> None:
    assert read_facts(json.loads(json.dumps(facts.to_json())), Path("config.json")) == facts


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("stride_in_1x1", "yes please"),
        ("stride_in_1x1", 1),
        ("norm_eps", -1),
        ("norm_eps", float("nan")),
        ("norm_eps", "small"),
        ("preprocessing", []),
        ("preprocessing", {"channel_order": "bgr"}),
        ("preprocessing", {**dataclasses.asdict(BGR255), "channel_order": "grb"}),
        ("preprocessing", {**dataclasses.asdict(BGR255), "mean": [1.0, 2.0]}),
        ("preprocessing", {**dataclasses.asdict(BGR255), "std": [1.0, 0.0, 1.0]}),
        ("preprocessing", {**dataclasses.asdict(BGR255), "other": 1}),
    ],
)
def test_values_of_a_stranger_are_checked(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^folder/config\.json: .*{key}"):
        read_facts({"architecture": "resnet50", key: value}, Path("folder/config.json"))


# What earlier versions wrote about the input, beside a pretrained_cfg with ImageNet's mean.
OLD_NOTES = [
    "the keys do not tell which input the weights expect; the published detection backbones take BGR pixels in 0..255 "
    "minus (102.9801, 115.9465, 122.7717), while pretrained_cfg says RGB in 0..1 with ImageNet's mean and deviation",
    "vovnet-detectron2 feeds its networks BGR pixels in 0..255 minus (103.53, 116.28, 123.675), while pretrained_cfg "
    "says RGB in 0..1 with ImageNet's mean and deviation",
]


@pytest.mark.parametrize("note", OLD_NOTES)
@pytest.mark.parametrize("conventions", ["legacy", "torchvision"])
def test_a_folder_that_tells_its_input_in_a_note_alone_is_refused(conventions: Any, note: str, tmp_path: Path) -> None:
    """It would be taken for RGB in 0..1, and folding such an input in would spoil the weights."""
    config = {"architecture": "vovnet27_slim", "num_classes": 0, "pretrained_cfg": {"notes": ["other", note]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"x": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"config\.json.*convert the published file again"):
        load_matching(detector(conventions=conventions), tmp_path, conventions)
    described = {**config, **NetworkFacts(BGR255).to_json()}
    assert read_facts(described, Path("config.json")).preprocessing == BGR255


@pytest.mark.parametrize("notes", [None, "BGR", [], ["other"], [3], {"a": 1}])
def test_other_notes_do_not_matter(notes: Any) -> None:
    assert read_facts({"pretrained_cfg": {"notes": notes}}, Path("config.json")) == NetworkFacts()


@pytest.mark.parametrize("backbone", ["vovnet27_slim", "resnet18"])
def test_each_conventions_take_their_own_images(backbone: str) -> None:
    check_start(NetworkFacts(BGR255), detector(backbone, conventions="legacy"), "legacy", "W")
    check_start(NetworkFacts(), detector(backbone), "torchvision", "W")
    with pytest.raises(InputError, match=r"'W'.*RGB.*--input bgr255"):
        check_start(NetworkFacts(), detector(backbone, conventions="legacy"), "legacy", "W")
    with pytest.raises(InputError, match=r"'W'.*BGR.*model\.conventions=legacy"):
        check_start(NetworkFacts(BGR255), detector(backbone), "torchvision", "W")


def test_another_mean_or_deviation_is_refused_with_the_override() -> None:
    with pytest.raises(InputError, match=r"model\.image_mean=\[103.53, 116.28, 123.675\].*image_std=\[57.375"):
        check_start(NetworkFacts(DETECTRON2), detector(conventions="legacy"), "legacy", "W")
    settings = {"image_mean": DETECTRON2.mean, "image_std": DETECTRON2.std}
    check_start(NetworkFacts(DETECTRON2), detector(conventions="legacy", **settings), "legacy", "W")


@pytest.mark.parametrize("in_1x1", [True, False])
def test_a_resnet_starts_where_its_strides_are(in_1x1: bool) -> None:
    """timm's and torchvision's have them in the 3×3, Caffe2's in the 1×1; neither is a start of the other."""
    facts = NetworkFacts(BGR255, stride_in_1x1=in_1x1)
    check_start(facts, detector("resnet50", conventions="legacy", stride_in_1x1=in_1x1), "legacy", "W")
    other = detector("resnet50", conventions="legacy", stride_in_1x1=not in_1x1)
    with pytest.raises(InputError, match=rf"'W'.*model\.stride_in_1x1={str(in_1x1).lower()}"):
        check_start(facts, other, "legacy", "W")
    if in_1x1:
        with pytest.raises(InputError, match=r"model\.stride_in_1x1"):
            check_start(NetworkFacts(stride_in_1x1=True), detector("resnet50"), "torchvision", "W")
    else:
        check_start(NetworkFacts(), detector("resnet50"), "torchvision", "W")


def test_a_detectors_strides_are_compared_too(tmp_path: Path) -> None:
    model = ModelRecipe(backbone="resnet26", conventions="legacy", **SMALL)
    save_detector(tmp_path, build_detector(model), model, [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}])
    other = build_detector(ModelRecipe(backbone="resnet26", conventions="legacy", stride_in_1x1=False, **SMALL))
    with pytest.raises(InputError, match=r"model\.stride_in_1x1=true"):
        load_matching(other, tmp_path, "legacy")
    assert load_matching(build_detector(model), tmp_path, "legacy").fresh == []


@pytest.mark.parametrize("norm", ["frozen_bn", "bn"])
def test_norms_without_an_epsilon_compute_what_those_with_one_did(norm: Any, tmp_path: Path) -> None:
    """Frozen norms of legacy detectors have none; a channel whose variance is almost nothing must not explode."""
    torch.manual_seed(0)
    model: Any = timm.create_model("vovnet27_slim", num_classes=0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var.uniform_(0.5, 1.5)[0] = 1e-9
    save_file({key: value.clone() for key, value in model.state_dict().items()}, tmp_path / "model.safetensors")
    facts = NetworkFacts(BGR255, norm_eps=1e-5)
    config = {"architecture": "vovnet27_slim", "num_classes": 0, "pretrained_cfg": {}, **facts.to_json()}
    (tmp_path / "config.json").write_text(json.dumps(config))
    recipe = ModelRecipe(backbone="vovnet27_slim", conventions="legacy", norm=norm, pretrained=True, **SMALL)
    body: Any = build_detector(recipe, download=False)
    load_matching(body, tmp_path, "legacy")
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        found, expected = body.eval().backbone.body(image)[-1], model.eval().forward_features(image)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
