"""Classifiers as files: their probabilities are those of ``classify``, and what cannot be a file is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from evaluation_images import as_pixels, random_image
from numpy.typing import NDArray
from PIL import Image
from small_networks import SIZES as SMALL
from small_networks import network
from support import command, contents
from timm.models import save_for_hf
from torch import nn

import vovnet
from vovnet.classification import classify
from vovnet.errors import InputError
from vovnet.export.classifier import export_classifier, exportable_classifier

SIZES = [(240, 320), (333, 200), (100, 90)]


@pytest.fixture(scope="module")
def model() -> nn.Module:
    """A network that is sure of itself, so that probabilities depend on the image."""
    made: nn.Module = network()
    nn.init.normal_(made.get_parameter("head.fc.weight"), std=3.0)
    return made


def expected(model: nn.Module, image: Image.Image) -> NDArray[np.float64]:
    found = classify(model, [image], top=10_000)[0]
    return np.array([one["score"] for one in sorted(found, key=lambda one: one["index"])])


def metadata_of(path: Path) -> dict[str, Any]:
    files = {"vovnet": ""}
    torch.jit.load(str(path), _extra_files=files)
    values: dict[str, Any] = json.loads(files["vovnet"])
    return values


@pytest.mark.parametrize("size", [None, (240, 320)])
@pytest.mark.parametrize("input", ["uint8", "float32"])
def test_a_torchscript_file_classifies_as_the_model(model: nn.Module, tmp_path: Path, size: Any, input: Any) -> None:
    path = export_classifier(model, tmp_path / "m.torchscript", "torchscript", size=size, input=input)
    opened = torch.jit.load(str(path))
    for height, width in [size] if size else SIZES:
        image = random_image(height, width)
        pixels = torch.from_numpy(as_pixels(image))
        with torch.inference_mode():
            found = opened(pixels if input == "uint8" else pixels / 255)
        assert found.dtype == torch.float32
        assert found.numpy() == pytest.approx(expected(model, image), abs=1e-4)
        assert found.max() > 0.3


def test_a_batch(model: nn.Module, tmp_path: Path) -> None:
    path = export_classifier(model, tmp_path / "m.torchscript", "torchscript", size=(120, 100), batch=2)
    images = [random_image(120, 100), random_image(240, 200).crop((50, 50, 150, 170))]
    with torch.inference_mode():
        found = torch.jit.load(str(path))(torch.from_numpy(np.stack([as_pixels(image) for image in images])))
    for row, image in zip(found.numpy(), images, strict=True):
        assert row == pytest.approx(expected(model, image), abs=1e-4)


def test_a_grey_model_takes_grey_images() -> None:
    grey = network(in_chans=1)
    exportable = exportable_classifier(grey)
    image = random_image(130, 170, channels=1)
    assert exportable.metadata.input.channels == 1
    found = exportable.module(torch.from_numpy(as_pixels(image)))
    assert found.detach().numpy() == pytest.approx(expected(grey, image), abs=1e-4)


def test_the_file_says_what_it_is(model: nn.Module, tmp_path: Path) -> None:
    said = metadata_of(export_classifier(model, tmp_path / "m.torchscript", "torchscript", size=(50, 60)))
    assert said["kind"] == "classifier"
    assert said["version"] == vovnet.__version__
    assert said["input"] == {"channels": 3, "dtype": "uint8", "size": [50, 60], "batch": None}
    assert said["categories"] == [{"id": number, "name": str(number)} for number in range(5)]
    assert said["preprocessing"]["input_size"] == [3, 224, 224]
    assert said["preprocessing"]["interpolation"] == "bilinear"
    assert said["model"]["architecture"] == "vovnet27_slim"


def test_the_model_is_not_changed(model: nn.Module, tmp_path: Path) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    export_classifier(model, tmp_path / "m.torchscript", "torchscript", size=(50, 60), precision="bf16")
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    model.eval()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_is_no_classifier_of_images_is_refused(model: nn.Module, tmp_path: Path) -> None:
    refused: list[tuple[nn.Module, str]] = [
        (nn.Linear(2, 2), "model"),
        (timm.create_model("vovnet27_slim", num_classes=0), "model"),
        (network(in_chans=4), "channels"),
        (vovnet.fuse(model), "fused copy"),
    ]
    for wrong, word in refused:
        with pytest.raises(InputError, match=word):
            export_classifier(wrong, tmp_path / "m.torchscript", "torchscript")
    with pytest.raises(InputError, match="batch"):
        export_classifier(model, tmp_path / "m.torchscript", "torchscript", batch=2)
    assert not contents(tmp_path)


def test_the_command_exports_a_classifier_folder(model: nn.Module, tmp_path: Path) -> None:
    names = ["ant", "bee", "cat", "dog", "elk"]
    save_for_hf(model, str(tmp_path / "timm"), model_config={"label_names": names}, safe_serialization=True)
    config = json.loads((tmp_path / "timm/config.json").read_text())
    config["model_args"] |= SMALL
    (tmp_path / "timm/config.json").write_text(json.dumps(config))
    arguments = ["export", tmp_path / "timm", "--format", "torchscript", "--size", "60x80"]
    done = command(*arguments, "--output", tmp_path / "m.torchscript")
    assert done.code == 0, done.err
    assert "m.torchscript" in done.out
    assert [one["name"] for one in metadata_of(tmp_path / "m.torchscript")["categories"]] == names
    random_image(60, 80).save(tmp_path / "a.png")
    by_model, by_file = (
        command("predict", tmp_path / "a.png", "--weights", weights, "--device", "cpu")
        for weights in (tmp_path / "timm", tmp_path / "m.torchscript")
    )
    assert by_model.out == by_file.out
    assert names[0] in by_file.out
