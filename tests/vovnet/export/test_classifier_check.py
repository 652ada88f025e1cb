"""An exported classifier is compared with its model; what differs is found."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_networks
import torch
from PIL import Image

from vovnet.errors import InputError
from vovnet.export.checking import CheckOptions
from vovnet.export.classifier import export_classifier
from vovnet.export.classifier_check import ClassifierParity, check_classifier, classifier_parity

SIDE = 80


@pytest.fixture(scope="module")
def model() -> Any:
    return small_networks.network()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, model: Any) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    (folder / "images").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
    export_classifier(model, folder / "model.torchscript", "torchscript", size=(SIDE, SIDE))
    return folder


def test_a_file_agrees_with_its_model(model: Any, folder: Path) -> None:
    parity = classifier_parity(model, folder / "model.torchscript", folder / "images")
    assert (parity.images, parity.changed) == (3, 0)
    assert parity.difference < 1e-4
    parity.require(0)
    assert "model.torchscript" in parity.table()


def test_another_model_is_told_from_it(model: Any, folder: Path) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_classifier().bias[0] += 5
    lines: list[str] = []
    file = folder / "model.torchscript"
    with pytest.raises(InputError, match="probabilities differ"):
        check_classifier(other, file, CheckOptions(folder / "images"), lines.append)
    check_classifier(other, file, CheckOptions(folder / "images", force=True), lines.append)
    assert len(lines) == 2


def test_other_precisions_may_see_another_class_in_a_few_images() -> None:
    found = ClassifierParity(Path("model.xml"), "int8", 200, 0.2, 2)
    found.require(0.01)
    with pytest.raises(InputError, match="3 of 200"):
        dataclasses.replace(found, changed=3).require(0.01)
