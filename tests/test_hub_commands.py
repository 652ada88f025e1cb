"""The commands take names on the Hub where they take folders: prediction, evaluation and the start of a training."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from local_hub import ALWAYS, Hub
from published_sources import publish, pytorchcv_file
from safetensors.torch import load_file
from support import Outcome, command, contents
from timm.models import save_for_hf
from zips import zipped

from vovnet.detection import load_recipe
from vovnet.detection.checkpoints.folder import save_detector
from vovnet.detection.data.synthetic import generate_shapes
from vovnet.detection.models.build import build_detector

SMALL = (
    "model.pretrained=false",
    "model.min_size=64",
    "model.max_size=64",
    "model.fpn_channels=8",
    "model.box_representation_size=16",
    "model.mask_head_convs=1",
    "model.mask_head_channels=8",
    "model.box_score_thresh=0.0",
    "model.box_detections_per_img=5",
)
SIZES: dict[str, Any] = {"stem_chs": [8, 8, 8], "stage_conv_chs": [8, 8, 8, 8], "stage_out_chs": [8, 8, 8, 8]}
DETECTOR, CLASSIFIER = "org/detector", "org/classifier"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Two images to train on and two to evaluate on, of three categories."""
    return generate_shapes(tmp_path_factory.mktemp("data"), train=2, val=2, size=(64, 64), max_shapes=2)


@pytest.fixture(scope="module")
def image(data: dict[str, Any]) -> Path:
    return sorted(Path(data["val"].images).iterdir())[0]


@pytest.fixture(scope="module")
def detectors(data: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One for the data's categories, one for two others."""
    categories = json.loads(Path(data["train"].annotations).read_text())["categories"]
    folders = {}
    for name, listed in (("fit", categories), ("other", [{"id": 1, "name": "cat"}, {"id": 9, "name": "dog"}])):
        folders[name] = tmp_path_factory.mktemp(name)
        model = load_recipe("quickstart", [*SMALL, f"model.num_classes={len(listed)}"]).model
        torch.manual_seed(len(listed))
        save_detector(folders[name], build_detector(model), model, listed)
    return folders


@pytest.fixture
def published(hub: Hub, detectors: dict[str, Path], tmp_path: Path) -> Hub:
    hub.create(DETECTOR, contents(detectors["fit"]))
    hub.tag(DETECTOR, "v1")
    torch.manual_seed(0)
    classifier = timm.create_model("vovnet27_slim", num_classes=3, **SIZES)
    config = {"num_classes": 3, "label_names": ["owl", "emu", "jay"]}
    folder = tmp_path / "classifier"
    save_for_hf(classifier, str(folder), model_config=config, model_args=dict(SIZES), safe_serialization=True)
    hub.create(CLASSIFIER, contents(folder))
    return hub


def done(outcome: Outcome) -> Outcome:
    assert outcome.code == 0, outcome.err
    return outcome


def predict(image: Path, weights: object, output: Path) -> bytes:
    done(command("predict", image, "--weights", weights, "--output", output))
    assert (output / f"{image.stem}.png").stat().st_size > 0
    return (output / f"{image.stem}.json").read_bytes()


def test_predict_with_a_detector(published: Hub, detectors: dict[str, Path], image: Path, tmp_path: Path) -> None:
    expected = predict(image, detectors["fit"], tmp_path / "local")
    assert json.loads(expected)
    assert published.log() == []
    published.commit(DETECTOR, {"model.safetensors": b"damaged later"})
    for i, name in enumerate((f"{DETECTOR}@v1", f"{DETECTOR}@{published.tags(DETECTOR)['v1']}")):
        assert predict(image, name, tmp_path / f"hub{i}") == expected
    outcome = command("predict", image, "--weights", DETECTOR, "--output", tmp_path / "damaged")
    outcome.refused("model.safetensors")
    assert not (tmp_path / "damaged").exists()


def test_predict_with_a_classifier(published: Hub, image: Path, tmp_path: Path) -> None:
    expected = done(command("predict", image, "--weights", tmp_path / "classifier")).out
    assert all(name in expected for name in ("owl", "emu", "jay"))
    for name in (CLASSIFIER, f"hf-hub:{CLASSIFIER}", f"{CLASSIFIER}@{published.head(CLASSIFIER)}"):
        assert done(command("predict", image, "--weights", name)).out == expected


def test_evaluate(published: Hub, data: dict[str, Any], detectors: dict[str, Path], tmp_path: Path) -> None:
    def evaluate(weights: object, output: Path) -> dict[str, Any]:
        source = ("--images", data["val"].images, "--annotations", data["val"].annotations)
        done(command("evaluate", "--weights", weights, *source, "--workers", 0, "--output", output))
        return {name: json.loads((output / name).read_text()) for name in ("metrics.json", "results_bbox.json")}

    expected = evaluate(detectors["fit"], tmp_path / "local")
    assert len(expected["results_bbox.json"]) > 0
    assert evaluate(DETECTOR, tmp_path / "hub") == expected


def train(data: dict[str, Any], output: Path, *settings: str) -> Outcome:
    sources = (
        f"data.{split}=[{{images: '{one.images}', annotations: '{one.annotations}'}}]" for split, one in data.items()
    )
    schedule = ("solver.batch_size=2", "solver.max_iterations=1", "solver.steps=[1]", "solver.base_lr=0.0")
    small = ("data.workers=0", "data.train_min_sizes=[64]", "data.train_max_size=64", "log.evaluate_every=0")
    settings = (*sources, *SMALL, *schedule, *small, "solver.warmup_iterations=1", "solver.weight_decay=0.0", *settings)
    return command("train", "quickstart", *settings, "--output", output)


def learned(run: Path, start: Path) -> tuple[set[str], set[str]]:
    """Which parameters of a run that learned nothing are its start's, and which are not."""
    after, before = load_file(run / "model.safetensors"), load_file(start / "model.safetensors")
    kept = {key for key, value in after.items() if key in before and torch.equal(value, before[key])}
    # Norms count the images that they see.
    statistics = {key for key in after if "running_" in key or "num_batches" in key}
    return kept - statistics, set(after) - kept - statistics


def test_fine_tuning_with_other_classes_says_what_starts_anew(
    published: Hub, data: dict[str, Any], detectors: dict[str, Path], tmp_path: Path
) -> None:
    published.create("org/other", contents(detectors["other"]))
    outcome = done(train(data, tmp_path / "run", "init=org/other"))
    heads = {
        f"roi_heads.{part}.{leaf}"
        for part in ("box_predictor.cls_score", "box_predictor.bbox_pred", "mask_predictor.mask_fcn_logits")
        for leaf in ("weight", "bias")
    }
    (line,) = [line for line in (outcome.out + outcome.err).splitlines() if "started anew" in line]
    assert "org/other" in line
    assert {name.strip() for name in line.partition("anew:")[2].split(",")} == heads
    kept, changed = learned(tmp_path / "run", detectors["other"])
    assert changed == heads
    assert any(key.startswith("backbone.body.") for key in kept)
    assert len(kept) > 80


def test_fine_tuning_with_the_same_classes_starts_nothing_anew(
    published: Hub, data: dict[str, Any], detectors: dict[str, Path], tmp_path: Path
) -> None:
    outcome = done(train(data, tmp_path / "run", f"init={DETECTOR}@v1"))
    assert "started anew: nothing" in outcome.out + outcome.err
    assert learned(tmp_path / "run", detectors["fit"])[1] == set()
    # The run goes on and is read without its start.
    published.fail(".", times=ALWAYS, status=503)
    before = published.log()
    assert json.loads((tmp_path / "run" / "config.json").read_text())["format"] == "vovnet-detector"
    done(command("predict", *Path(data["val"].images).iterdir(), "-w", tmp_path / "run", "-o", tmp_path / "out"))
    assert published.log() == before


def test_a_classifier_on_the_hub_starts_a_backbone(published: Hub, data: dict[str, Any], tmp_path: Path) -> None:
    backbone = "model.backbone_args={stem_chs: [8, 8, 8], stage_conv_chs: [8, 8, 8, 8], stage_out_chs: [8, 8, 8, 8]}"
    outcome = done(train(data, tmp_path / "run", "model.backbone=vovnet27_slim", backbone, f"init={CLASSIFIER}"))
    assert "started anew: backbone.fpn.*, roi_heads.*, rpn.*" in outcome.out + outcome.err
    start = load_file(tmp_path / "classifier" / "model.safetensors")
    after = load_file(tmp_path / "run" / "model.safetensors")
    assert torch.equal(after["backbone.body.stem_0.conv.weight"], start["stem.0.conv.weight"])


COMMANDS: dict[str, Callable[[dict[str, Any], Path, Path, str], Outcome]] = {
    "predict": lambda data, image, output, name: command("predict", image, "-w", name, "-o", output),
    "evaluate": lambda data, image, output, name: command(
        "evaluate", "-w", name, "--images", data["val"].images, "--annotations", data["val"].annotations, "-o", output
    ),
    "train": lambda data, image, output, name: train(data, output, f"init={name}"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_what_goes_wrong_is_one_line(
    published: Hub, data: dict[str, Any], image: Path, tmp_path: Path, name: str
) -> None:
    run = COMMANDS[name]
    run(data, image, tmp_path / "out", "org/nothing").refused("org/nothing", "no such repository")
    run(data, image, tmp_path / "out", f"{DETECTOR}@v9").refused(DETECTOR, "'v9'")
    published.down()
    run(data, image, tmp_path / "out", DETECTOR).refused(DETECTOR, "config.json", "HF_ENDPOINT", "folder", "cache")
    assert not (tmp_path / "out").exists() or contents(tmp_path / "out") == {}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_warm_cache_is_enough(
    published: Hub, data: dict[str, Any], image: Path, tmp_path: Path, offline: Callable[[], None], name: str
) -> None:
    run = COMMANDS[name]
    done(run(data, image, tmp_path / "first", DETECTOR))
    published.down()
    done(run(data, image, tmp_path / "down", DETECTOR))
    offline()
    done(run(data, image, tmp_path / "offline", DETECTOR))


def test_a_bare_name_is_downloaded_once_and_classifies(
    hub: Hub, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a fresh install: the caches are empty, and the publisher's archive is where the table says."""
    torch.manual_seed(0)
    content = pytorchcv_file(timm.create_model("vovnet27_slim"))
    file = "vovnet27s-0997-b7a5bf67.pth"
    address = hub.put_file(f"{file}.zip", zipped([(file, content)]))
    publish(monkeypatch, "vovnet27_slim.osmr_in1k", address, hashlib.sha1(content).hexdigest())
    first, second = (command("predict", image, "--weights", "vovnet27_slim") for _ in range(2))
    assert first.code == second.code == 0, first.err
    assert first.out == second.out
    assert first.out.startswith(f"{image}: ")
    assert hub.log() == [("GET", f"/files/{file}.zip", 200)]
    assert list(contents(tmp_path / "torch")) == [f"hub/checkpoints/{file}"]
