"""`vovnet convert` of torchvision's detectors: the folder detects what torchvision's own does, to the last bit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from support import command, contents
from torch import Tensor
from torchvision.models import get_model, get_model_weights
from torchvision_files import images, in_cache, random_state, small

from vovnet.detection.checkpoints.torchvision_detectors import TorchvisionDetector
from vovnet.errors import InputError
from vovnet.hub import convert_checkpoint, load_detector, verify
from vovnet.hub.manifest import sha256_of

SMALL = "fasterrcnn_mobilenet_v3_large_320_fpn"
MORE = ("fasterrcnn_resnet50_fpn_v2", "maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2")
KINDS = [
    *("keypointrcnn_resnet50_fpn", "fcos_resnet50_fpn"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in MORE),
]


def saved(path: Path, state: Any) -> Path:
    torch.save(state, path)
    return path


def assert_same_detections(ours: Any, theirs: Any) -> None:
    batch = images()
    with torch.no_grad():
        expected, found = small(theirs).eval()(batch), small(ours)(batch)
    assert sum(len(one["boxes"]) for one in expected) > 1
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", KINDS)
def test_a_file_of_each_kind_detects_what_torchvisions_own_detector_does(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = random_state(name)
    done = command("convert", saved(tmp_path / "file.pth", state), tmp_path / "out")
    assert done.code == 0, done.err
    assert f"(torchvision:{name})" in done.out
    assert "SHA-256" in done.out
    in_cache(monkeypatch, {name: state})
    theirs: Any = get_model(name, weights="DEFAULT")
    ours = load_detector(tmp_path / "out")
    assert [one["name"] for one in ours.categories] == get_model_weights(name)["DEFAULT"].meta["categories"][1:]
    assert_same_detections(ours, theirs)


def test_a_detector_with_other_classes_that_was_trained_from_nothing(tmp_path: Path) -> None:
    theirs = get_model(SMALL, weights=None, weights_backbone=None, num_classes=4)
    state = theirs.state_dict()
    values = random_state(SMALL, seed=3)
    state |= {key: value for key, value in values.items() if value.shape == state[key].shape}
    theirs.load_state_dict(state)
    path = saved(tmp_path / "file.pth", {"model": state, "optimizer": {}})
    result = convert_checkpoint(path, tmp_path / "out", expect=f"torchvision:{SMALL}")
    assert any("does not name its 3 classes" in note for note in result.notes)
    ours = load_detector(tmp_path / "out")
    assert [one["id"] for one in ours.categories] == [1, 2, 3]
    assert_same_detections(ours, theirs)
    assert verify(tmp_path / "out").difference == 0


def test_a_published_file_is_named_with_its_metrics_and_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "renamed.pth", random_state(SMALL))
    own = TorchvisionDetector.digits.fget  # type: ignore[attr-defined]
    sha256 = sha256_of(path)
    monkeypatch.setattr(
        TorchvisionDetector, "digits", property(lambda self: sha256[:8] if self.name == SMALL else own(self))
    )
    result = convert_checkpoint(path, tmp_path / "out")
    assert result.name == f"torchvision:{SMALL}.COCO_V1"
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.data.license == "bsd-3-clause"
    assert [one.metric_value for one in card.data.eval_results] == [22.8]
    source = json.loads((tmp_path / "out" / "manifest.json").read_text())["source"]
    assert (source["name"], source["license"]) == (result.name, "bsd-3-clause")
    before = contents(tmp_path / "out")
    for other in ("torchvision:fasterrcnn_mobilenet_v3_large_fpn", "faster_rcnn_V_39_FPN_2x", "vovnet39"):
        with pytest.raises(InputError, match=re.escape(other)):
            convert_checkpoint(path, tmp_path / "out", expect=other, overwrite=True)
    assert contents(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({"head.classification_head.cls_logits.bias": torch.zeros(2)}, "missing"),
        ({"roi_heads.box_predictor.cls_score.bias": torch.zeros(2)}, "missing"),
        ({"head.regression_head.x": torch.zeros(2), "backbone.features.0.weight": torch.zeros(2)}, "left over"),
    ],
)
def test_what_fits_nothing_is_one_line(state: dict[str, Tensor], said: str, tmp_path: Path) -> None:
    refused = command("convert", saved(tmp_path / "file.pth", state), tmp_path / "out")
    assert said in refused.error()
    assert "fcos_resnet50_fpn" in refused.error()
    assert not (tmp_path / "out").exists()
