"""torchvision's COCO detectors where weights are named: prediction, evaluation, training, publishing, fusion."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from local_hub import Hub
from PIL import Image
from safetensors.torch import load_file
from support import Outcome, command, contents
from torch import Tensor
from torchvision_files import images, in_cache, random_state, small

import vovnet
from vovnet.detection.checkpoints.torchvision_detectors import NETWORKS, TorchvisionDetector, our_key
from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.synthetic import generate_shapes
from vovnet.errors import InputError
from vovnet.hub import load_detector

NAME = "fasterrcnn_mobilenet_v3_large_320_fpn"
WEIGHTS = f"torchvision:{NAME}"


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return random_state(NAME)


@pytest.fixture
def cached(state: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's file is in the cache."""
    in_cache(monkeypatch, {NAME: state})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DataSource]:
    """Two images to train on, two to evaluate on, of three categories."""
    return generate_shapes(tmp_path_factory.mktemp("data"), train=2, val=2, size=(64, 64), max_shapes=2)


def done(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    return outcome


def train(data: dict[str, DataSource], recipe: Path | str, output: Path, *more: str) -> Outcome:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of limits that so short a training reaches
        return command("train", recipe, "--output", output, *more)


@pytest.fixture(scope="module")
def run(
    state: dict[str, Tensor], data: dict[str, DataSource], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Outcome]:
    """The folder of a training that started from torchvision's weights, and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    recipe = folder / "mine.yaml"
    one = {"images": data["train"].images, "annotations": data["train"].annotations}
    values = {
        "model": {"trainable_stages": 1, "min_size": 64, "max_size": 64, "box_detections_per_img": 5},
        "data": {"train": [one], "train_min_sizes": [64], "train_max_size": 64, "workers": 0},
        "solver": {"batch_size": 2, "max_iterations": 1, "steps": [], "warmup_iterations": 0, "base_lr": 0.001},
        "init": WEIGHTS,
    }
    recipe.write_text(yaml.safe_dump(values), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        in_cache(patch, {NAME: state})
        return folder / "run", done(train(data, recipe, folder / "run"))


@pytest.mark.usefixtures("cached")
def test_predict_without_an_output_writes_into_predictions_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((64, 48), 90).convert("RGB").save("photo.png")
    outcome = done(command("predict", "photo.png", "--weights", WEIGHTS))
    assert "22.8" in outcome.err
    found = json.loads((tmp_path / "predictions" / "photo.json").read_text())
    names = {one["id"]: one["name"] for one in load_detector(WEIGHTS).categories}
    assert found
    assert all(names[one["category_id"]] == one["category"] for one in found)
    before = contents(tmp_path)
    command("predict", "photo.png", "--weights", WEIGHTS).refused("predictions", "--overwrite")
    assert contents(tmp_path) == before


@pytest.mark.usefixtures("cached")
def test_evaluate_on_cocos_categories(data: dict[str, DataSource], tmp_path: Path) -> None:
    annotations = json.loads(Path(data["val"].annotations).read_text())
    coco = {1: 1, 2: 18, 3: 90}
    for one in annotations["annotations"]:
        one["category_id"] = coco[one["category_id"]]
    annotations["categories"] = [
        {"id": 1, "name": "person"},
        {"id": 18, "name": "dog"},
        {"id": 90, "name": "toothbrush"},
    ]
    file = tmp_path / "val.json"
    file.write_text(json.dumps(annotations), encoding="utf-8")
    arguments = ["--weights", WEIGHTS, "--images", data["val"].images, "--annotations", file, "--workers", "0"]
    done(command("evaluate", *arguments, "--output", tmp_path / "out"))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics["bbox"]["AP"] >= 0
    results = json.loads((tmp_path / "out" / "results_bbox.json").read_text())
    assert {one["category_id"] for one in results} <= set(range(1, 91))


def test_a_training_starts_from_torchvisions_weights(run: tuple[Path, Outcome], state: dict[str, Tensor]) -> None:
    folder, outcome = run
    line = next(line for line in outcome.out.splitlines() if "started anew" in line)
    assert WEIGHTS in line
    assert line.partition("started anew: ")[2].split(", ") == [
        f"roi_heads.box_predictor.{layer}.{leaf}" for layer in ("cls_score", "bbox_pred") for leaf in ("weight", "bias")
    ]
    assert "model.backbone='mobilenetv3_large_100'" in outcome.out
    after = load_file(folder / "model.safetensors")
    for key, value in state.items():  # the body's first stages, and all frozen norms
        if key.startswith("backbone.body.2.") or "running" in key:
            assert torch.equal(after[our_key(key, "faster_rcnn")], value), key
    assert after["roi_heads.box_predictor.cls_score.weight"].shape[0] == 4


def test_a_run_holds_the_network_in_full(
    run: tuple[Path, Outcome], data: dict[str, DataSource], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(self: TorchvisionDetector) -> Path:
        raise InputError(f"{self.name} is not there")

    monkeypatch.setattr(TorchvisionDetector, "_fetch", absent)
    folder, _ = run
    network = {key: value for key, value in NETWORKS[NAME].items() if key not in ("min_size", "max_size")}
    stored = json.loads((folder / "config.json").read_text())["model"]
    kept = yaml.safe_load((folder / "recipe.yaml").read_text())["model"]
    assert {key: stored[key] for key in network} == {key: kept[key] for key in network} == network
    assert (kept["min_size"], kept["trainable_stages"]) == (64, 1)
    with torch.no_grad():
        assert len(load_detector(folder)(images())) == 2
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("recipe.yaml", "last.pt", "metrics.jsonl"):
        (copy / name).write_bytes((folder / name).read_bytes())
    done(train(data, folder / "recipe.yaml", copy, "--resume", "solver.max_iterations=2"))
    assert json.loads((copy / "metrics.jsonl").read_text().splitlines()[-1])["iteration"] == 2
    refused = train(data, folder / "recipe.yaml", tmp_path / "again")
    assert "is not there" in refused.error()


@pytest.mark.usefixtures("token")
def test_publish_and_verify(run: tuple[Path, Outcome], hub: Hub) -> None:
    folder, _ = run
    done(command("publish", folder, "me/cells", "--license", "apache-2.0", "--yes"))
    card = hub.files("me/cells")["README.md"].decode()
    assert WEIGHTS in card
    assert "lee2019vovnet" not in card  # the network is no VoVNet
    done(command("verify", "me/cells"))


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn_v2", NAME])
def test_fuse(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    in_cache(monkeypatch, {name: random_state(name)})
    detector: Any = small(load_detector(f"torchvision:{name}"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the backbone's layers that stay as they are
        fused = vovnet.fuse(detector)
    batch = images(1)
    with torch.no_grad():
        for one, other in zip(detector(batch), fused(batch), strict=True):
            assert torch.equal(one["labels"], other["labels"])
            for key in one.keys() - {"labels"}:
                torch.testing.assert_close(other[key], one[key], rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("cached")
def test_layers_that_save_memory_need_a_vovnet() -> None:
    with pytest.raises(InputError, match="OSA"):
        vovnet.memory_efficient(load_detector(WEIGHTS))
