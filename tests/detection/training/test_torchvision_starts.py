"""A training starts from torchvision's own file of each detector: all but the layers of classes are the file's."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import short_recipe
from torchvision_files import in_cache, random_state

from vovnet.detection import train
from vovnet.detection.checkpoints.folder import load_detector
from vovnet.detection.checkpoints.torchvision_detectors import our_key, torchvision_detector
from vovnet.detection.config.detectors import DETECTORS
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.data.synthetic import generate_shapes

NAMES = ["fcos_resnet50_fpn", "keypointrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "retinanet_resnet50_fpn_v2"]


@pytest.mark.slow  # the files are ResNet-50's; that of a MobileNet is in tests/test_torchvision_weights.py
@pytest.mark.parametrize("name", NAMES)
def test_all_but_the_layers_of_classes_are_the_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is learnt at a rate of 0, so that the run's weights are those that it started from."""
    kind = torchvision_detector(f"torchvision:{name}").model.detector
    state = random_state(name)
    in_cache(monkeypatch, {name: state})
    data = generate_shapes(tmp_path / "data", train=6, val=1, size=(64, 64), max_shapes=2, keypoints=True)
    recipe = short_recipe(max_iterations=1, base_lr=0.0, ema=None)
    recipe.model = ModelRecipe(detector=kind, min_size=64, max_size=64, norm="frozen_bn", trainable_stages=1)
    recipe.data = replace(recipe.data, train=[data["train"]])
    recipe.init = f"torchvision:{name}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of limits that so short a training reaches
        train(recipe, tmp_path / "run", progress=False)
    after = load_file(tmp_path / "run" / "model.safetensors")
    expected = {our_key(key, kind): value for key, value in state.items() if not key.endswith("tracked")}
    assert after.keys() == expected.keys()
    parts = DETECTORS[kind].class_parts
    anew = {key for key in after if after[key].shape != expected[key].shape}
    assert anew
    assert all(key.startswith(parts) for key in anew)
    assert all(any(key.startswith(part) for key in anew) for part in parts)
    assert [key for key in after if key not in anew and not torch.equal(after[key], expected[key])] == []
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "started anew" in line)
    assert set(line.partition("started anew: ")[2].split(", ")) == anew
    assert load_detector(tmp_path / "run").recipe.detector == kind
