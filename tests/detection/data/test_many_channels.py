"""Images of five channels from files to a detector and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from vovnet.detection import load_recipe, train
from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.channel_statistics import ChannelStatistics, spread_positions
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.data.dataset_check import check_dataset
from vovnet.detection.data.sources import splits_of
from vovnet.detection.prediction.predictor import predict_files
from vovnet.errors import InputError
from vovnet.hub import load_detector

MEANS = np.array([0.1, 0.2, 0.4, 0.6, 0.8])


def write(folder: Path, count: int = 4) -> np.ndarray:  # type: ignore[type-arg]
    """Write 16-bit images of five channels, and return them as (N, C, H, W) in 0..1."""
    (folder / "images").mkdir(parents=True)
    random = np.random.default_rng(0)
    noise = random.normal(0, 0.03, (count, 5, 48, 64))
    values = ((MEANS[:, None, None] + noise).clip(0, 1) * 65535).round().astype(np.uint16)
    content: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "cell"}]}
    for number, image in enumerate(values, start=1):
        np.save(folder / "images" / f"{number}.npy", image.transpose(1, 2, 0))
        content["images"].append({"id": number, "file_name": f"{number}.npy", "width": 64, "height": 48})
        content["annotations"].append({"id": number, "image_id": number, "category_id": 1, "bbox": [8, 8, 30, 30]})
    (folder / "labels.json").write_text(json.dumps(content))
    return values / 65535


def test_the_dataset_has_every_channel_with_all_bits(tmp_path: Path) -> None:
    values = write(tmp_path)
    source = DataSource(images=str(tmp_path / "images"), annotations=str(tmp_path / "labels.json"))
    image, _ = CocoDataset([source], masks=False, training=True, channels=5)[2]
    assert np.abs(image.numpy() - values[2]).max() < 1e-6
    with pytest.raises(InputError, match="in_chans=5"):
        CocoDataset([source], masks=False, training=False)[0]


def test_check_data_measures_the_channels(tmp_path: Path) -> None:
    values = write(tmp_path)
    found = check_dataset(splits_of(tmp_path)[1])
    assert found.ok, found.text()
    suggested: dict[str, Any] = {one.key: one.value for one in found.suggestions}
    assert suggested["model.in_chans"] == 5
    assert suggested["model.image_mean"] == pytest.approx(values.mean((0, 2, 3)), abs=1e-4)
    assert suggested["model.image_std"] == pytest.approx(values.std((0, 2, 3)), abs=1e-4)


RECIPE = [
    *("model.backbone=vovnet27_slim", "model.pretrained=false", "model.norm=gn", "model.fpn_channels=16"),
    *("model.in_chans=5", "model.min_size=64", "model.max_size=96", "model.box_representation_size=16"),
    *("data.train_min_sizes=[64]", "data.train_max_size=96", "data.workers=0", "data.val=[]", "data.colour=0"),
    *("solver.batch_size=2", "solver.reference_batch_size=2", "solver.max_iterations=1", "solver.steps=[]"),
    *("log.evaluate_every=0", "init=null"),
]


def test_a_training_measures_them_and_its_detector_predicts_on_files(tmp_path: Path) -> None:
    values = write(tmp_path / "data")
    recipe = load_recipe("own_data_cpu", [*RECIPE, f"data.train=['{tmp_path / 'data'}']"])
    train(recipe, tmp_path / "run")
    model = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())["model"]
    assert model["image_mean"] == pytest.approx(values.mean((0, 2, 3)), abs=1e-4)
    assert model["image_std"] == pytest.approx(values.std((0, 2, 3)), abs=1e-4)
    before = (tmp_path / "run" / "recipe.yaml").read_text()
    train(recipe, tmp_path / "run", resume=True)  # it measures the same again, or would be refused
    assert (tmp_path / "run" / "recipe.yaml").read_text() == before
    detector = load_detector(tmp_path / "run")
    predict_files(detector, [tmp_path / "data" / "images" / "1.npy"], tmp_path / "out", report=lambda line: None)
    assert (tmp_path / "out" / "1.png").is_file()
    assert isinstance(json.loads((tmp_path / "out" / "1.json").read_text()), list)


def test_colours_of_channels_that_are_none_are_refused() -> None:
    with pytest.raises(InputError, match=r"data\.colour"):
        load_recipe("own_data_cpu", [*RECIPE, "data.colour=0.5"])


def test_statistics_by_hand() -> None:
    found = ChannelStatistics()
    found.add(np.array([[[0, 255]], [[255, 255]]], np.uint8))
    found.add(np.array([[[0.5, 0.5]], [[1.0, 1.0]]], np.float32))
    found.add(np.zeros((3, 1, 2), np.uint8))
    assert (found.count, found.mean, found.std) == (2, [0.5, 1.0], [pytest.approx(0.125**0.5, abs=1e-6), 1.0])
    assert len(list(spread_positions(1001))) <= 100
    assert list(spread_positions(3)) == [0, 1, 2]
