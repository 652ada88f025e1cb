"""Legacy recipes through the whole of training: what is left out, what goes on, what several processes see."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from tiny_runs import lines_of, losses_of
from torch import Tensor
from torchvision import tv_tensors

from vovnet.detection import evaluate, predict
from vovnet.detection.config.data import DataRecipe
from vovnet.detection.config.loading import load_recipe, recipe_to_yaml
from vovnet.detection.config.schema import Recipe
from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.legacy.data import legacy_train_transforms
from vovnet.detection.legacy.masks import mask_targets
from vovnet.detection.training.callbacks import Callback
from vovnet.detection.training.engine import train
from vovnet.detection.training.optimizer import learning_rate_factor
from vovnet.detection.training.preparation import prepare
from vovnet.detection.training.rules import rules_of
from vovnet.detection.training.run import Run
from vovnet.detection.training.signals import TrainingInterrupted
from vovnet.errors import InputError
from vovnet.hub import load_detector

REPOSITORY = Path(__file__).resolve().parents[3]
ITERATIONS = 6
TINY = (
    "model.backbone=vovnet27_slim",
    "model.pretrained=false",
    "model.norm=bn",
    "model.fpn_channels=8",
    "model.box_representation_size=16",
    "model.mask_head_channels=8",
    "model.mask_head_convs=1",
    "model.min_size=64",
    "model.max_size=96",
    "model.rpn_pre_nms_top_n_train=60",
    "model.rpn_post_nms_top_n_train=30",
    "model.rpn_pre_nms_top_n_test=60",
    "model.rpn_post_nms_top_n_test=30",
    "model.box_batch_size_per_image=16",
    "model.box_score_thresh=0.0",
    "data.workers=0",
    "data.train_min_sizes=[48,64]",
    "data.train_max_size=96",
    "solver.base_lr=0.002",
    "solver.batch_size=2",
    "solver.reference_batch_size=2",
    f"solver.max_iterations={ITERATIONS}",
    "solver.steps=[4]",
    "solver.warmup_iterations=3",
    "log.log_every=1",
)
SAMPLE_ALL = ("model.rpn_batch_size_per_image=10000000", "model.box_batch_size_per_image=10000000")
"""Nothing is drawn: the same boxes are trained on, whatever a process's random numbers."""
RECIPES = ("faster_rcnn_V_39_FPN_1x", "mask_rcnn_V_57_FPN_2x")


def write_data(folder: Path, count: int, without_objects: tuple[int, ...] = ()) -> tuple[str, str]:
    """Images of two shapes with an object each, or with a crowd alone; the recipe's keys for them."""
    folder.mkdir(parents=True, exist_ok=True)
    images, annotations = [], []
    for number in range(count):
        width, height = (96, 72) if number % 3 else (60, 80)
        left, top = 3 + 2 * number, 5 + number
        drawn = Image.new("RGB", (width, height), (30, 40, 60))
        ImageDraw.Draw(drawn).rectangle((left, top, left + 29, top + 39), fill=(220, 200, 20 * number))
        drawn.save(folder / f"{number}.png")
        images.append({"id": 40 + number, "file_name": f"{number}.png", "width": width, "height": height})
        entry = {"id": number + 1, "image_id": 40 + number, "category_id": 7, "area": 1200, "bbox": [left, top, 30, 40]}
        corners = [left, top, left + 30, top, left + 30, top + 40, left, top + 40]
        if number in without_objects:
            crowd = {"iscrowd": 1, "segmentation": {"size": [height, width], "counts": [0, height * width]}}
            annotations.append({**entry, **crowd})
        else:
            annotations.append({**entry, "iscrowd": 0, "segmentation": [corners]})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "square"}]}
    (folder / "instances.json").write_text(json.dumps(content))
    source = f"[{{images: '{folder}', annotations: '{folder}/instances.json'}}]"
    return f"data.train={source}", f"data.val={source}"


def recipe_of(name: str, *settings: str) -> Recipe:
    return load_recipe(name, [*TINY, *settings])


class InterruptAt(Callback):
    def __init__(self, iteration: int) -> None:
        self.at = iteration

    def iteration(self, run: Run, losses: Mapping[str, float]) -> None:
        if run.iteration == self.at:
            signal.raise_signal(signal.SIGINT)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return write_data(tmp_path_factory.mktemp("data"), 7)


@pytest.fixture(scope="module", params=RECIPES)
def finished(request: Any, data: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(recipe_of(request.param, *data), folder, progress=True)
    return request.param, folder


def test_a_run_leaves_a_detector_of_the_conventions(finished: tuple[str, Path]) -> None:
    name, folder = finished
    detector: Any = load_detector(folder)
    assert detector.recipe.conventions == "legacy"
    assert detector.categories == [{"id": 7, "name": "square"}]
    lines = losses_of(folder)
    assert [line["iteration"] for line in lines] == list(range(1, ITERATIONS + 1))
    assert ("loss_mask" in lines[0]) == name.startswith("mask")
    solver = recipe_of(name).solver
    # The n-th update has the rate of n finished ones: the schedule is stepped before it.
    assert [line["lr"] for line in lines] == [
        pytest.approx(0.002 * learning_rate_factor(solver, n), rel=1e-12) for n in range(1, ITERATIONS + 1)
    ]
    assert lines[3]["lr"] == pytest.approx(0.0002)  # already at the fourth
    assert any("box_ap" in line for line in lines_of(folder))


def test_results_have_inclusive_widths(finished: tuple[str, Path], data: tuple[str, str], tmp_path: Path) -> None:
    detector: Any = load_detector(finished[1])
    source = DataSource(str(image_folder(data)), str(image_folder(data) / "instances.json"))
    dataset = CocoDataset([source], masks=False, training=False)
    evaluate(detector, dataset, tmp_path)
    results = json.loads((tmp_path / "results_bbox.json").read_text())
    assert results
    expected = []
    with torch.no_grad():
        for image, target in (dataset[i] for i in range(len(dataset))):
            found = detector([image.as_subclass(Tensor).float() / 255])[0]
            expected += [
                (target["image_id"], x0, y0, x1 - x0 + 1, y1 - y0 + 1)
                for x0, y0, x1, y1 in found["boxes"].double().tolist()
            ]
    got = [(one["image_id"], *one["bbox"]) for one in results]
    assert len(got) == len(expected)
    np.testing.assert_allclose(got, expected, atol=1e-4)
    (predicted,) = predict(detector, [image_folder(data) / "0.png"])
    theirs = sorted((one for one in results if one["image_id"] == 40), key=lambda one: -one["score"])
    assert [one["bbox"] for one in predicted] == [one["bbox"] for one in theirs]


def image_folder(data: tuple[str, str]) -> Path:
    return Path(data[0].split("images: '")[1].split("'")[0])


def test_the_command_line_accepts_the_run(finished: tuple[str, Path], data: tuple[str, str], tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from vovnet.cli import app

    image_root = image_folder(data)
    command = ["evaluate", "--weights", str(finished[1]), "--images", str(image_root), "--workers", "0"]
    command += ["--annotations", str(image_root / "instances.json"), "--output", str(tmp_path / "evaluation")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert (tmp_path / "evaluation" / "metrics.json").is_file()
    Image.fromarray(np.full((40, 50), 120, dtype=np.uint8)).save(tmp_path / "grey.png")
    command = ["predict", str(image_root / "1.png"), str(tmp_path / "grey.png"), "--weights", str(finished[1])]
    done = CliRunner().invoke(app, [*command, "--output", str(tmp_path / "predictions")])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "predictions" / "1.json").read_text())
    assert (tmp_path / "predictions" / "grey.png").is_file()


def test_an_interrupted_run_goes_on_with_the_same_losses(
    finished: tuple[str, Path], data: tuple[str, str], tmp_path: Path
) -> None:
    name, whole = finished
    recipe = recipe_of(name, *data)
    with pytest.raises(TrainingInterrupted, match="resume=True"):
        train(recipe, tmp_path / "run", callbacks=[InterruptAt(4)], progress=False)
    torch.rand(5)
    train(recipe, tmp_path / "run", resume=True, progress=False)
    assert losses_of(tmp_path / "run") == losses_of(whole)
    first, second = load_detector(whole).state_dict(), load_detector(tmp_path / "run").state_dict()
    assert all(torch.equal(value, second[key]) for key, value in first.items())


class Own:
    """A user's dataset: half-open boxes, bitmaps instead of polygons, no sizes in advance."""

    categories = ({"id": 3, "name": "thing"},)

    def __init__(self, empty: tuple[int, ...] = ()) -> None:
        self.empty = empty

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, dict[str, Any]]:
        pixels = torch.zeros(3, 64, 64, dtype=torch.uint8)
        left = 4 * index
        pixels[:, 10:42, left : left + 32] = 200
        count = 0 if index in self.empty else 1
        boxes = torch.tensor([[left, 10, left + 32, 42]], dtype=torch.float32)[:count]
        masks = (pixels[:1] > 0).to(torch.uint8)[:count]
        return tv_tensors.Image(pixels), {
            "boxes": tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(64, 64)),
            "labels": torch.ones(count, dtype=torch.int64),
            "masks": tv_tensors.Mask(masks),
            "image_id": 100 + index,
        }


@pytest.mark.parametrize("name", RECIPES)
def test_a_users_own_dataset_trains(name: str, tmp_path: Path) -> None:
    recipe = recipe_of(name, "data.train=[]", "data.val=[]", "solver.max_iterations=2")
    metrics = train(recipe, tmp_path / "run", train_dataset=Own(), val_dataset=Own(), progress=False)
    assert len(losses_of(tmp_path / "run")) == 2
    assert ("segm" in metrics) == name.startswith("mask")


@pytest.mark.parametrize("kind", [torch.uint8, torch.bool, torch.int64, torch.float32])
def test_masks_of_any_type_are_bitmaps(kind: torch.dtype) -> None:
    """The protocol asks for uint8; the modern path takes the others, too."""
    image, target = Own()[1]
    target["masks"] = tv_tensors.Mask(target["masks"].to(kind))
    _, made = legacy_train_transforms(DataRecipe(train_min_sizes=[64], train_max_size=64, flip=0.0))(image, target)
    drawn = mask_targets(made["polygons"], torch.tensor([0]), made["boxes"], 28, (64, 64))
    assert float(drawn.mean()) > 0.9


class Watcher(Callback):
    """What each iteration left behind."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, bool, dict[str, Tensor]]] = []

    def iteration(self, run: Run, losses: Mapping[str, float]) -> None:
        state = {key: value.clone() for key, value in run.detector.state_dict().items()}
        self.seen.append((run.iteration, run.schedule.last_epoch, bool(losses), state))


def test_iterations_without_objects_are_left_out(tmp_path: Path) -> None:
    """Half of the batches have an empty image; one image a batch, so that it is known which."""
    settings = ("data.train=[]", "data.val=[]", "solver.batch_size=1", "solver.max_iterations=8", "solver.ema=0.5")
    watcher = Watcher()
    recipe = recipe_of(RECIPES[0], *settings)
    train(recipe, tmp_path / "run", train_dataset=Own(empty=(0, 2)), callbacks=[watcher], progress=True)
    assert [number for number, *_ in watcher.seen] == list(range(1, 9))
    trained = [done for _, _, done, _ in watcher.seen]
    assert sum(trained) == 4  # two passes over four images
    assert [epoch for _, epoch, _, _ in watcher.seen] == np.cumsum(trained).tolist()
    for before, (_, _, done, state) in zip(watcher.seen, watcher.seen[1:], strict=False):
        changed = any(not torch.equal(value, state[key]) for key, value in before[3].items())
        assert changed == done
    logged = lines_of(tmp_path / "run")
    assert [line["iteration"] for line in logged if "loss" in line] == [i + 1 for i, done in enumerate(trained) if done]
    rates = [line["lr"] for line in logged if "loss" in line]
    assert rates == [pytest.approx(0.002 / 2 * learning_rate_factor(recipe.solver, n)) for n in range(1, 5)]
    assert (tmp_path / "run" / "curves.png").stat().st_size > 0


def test_a_run_with_left_out_iterations_resumes_exactly(tmp_path: Path) -> None:
    settings = ("data.train=[]", "data.val=[]", "solver.batch_size=1", "solver.max_iterations=8")
    recipe, own = recipe_of(RECIPES[1], *settings), Own(empty=(0, 2))
    train(recipe, tmp_path / "whole", train_dataset=own, progress=False)
    with pytest.raises(TrainingInterrupted):
        train(recipe, tmp_path / "parts", train_dataset=own, callbacks=[InterruptAt(5)], progress=False)
    train(recipe, tmp_path / "parts", train_dataset=own, resume=True, progress=False)
    assert lines_of(tmp_path / "parts") == lines_of(tmp_path / "whole")


def test_a_run_that_leaves_everything_out_ends_in_order(tmp_path: Path) -> None:
    settings = ("data.train=[]", "data.val=[]", "solver.max_iterations=2")
    train(recipe_of(RECIPES[0], *settings), tmp_path / "run", train_dataset=Own(empty=(0, 1, 2, 3)), progress=False)
    assert not losses_of(tmp_path / "run")
    load_detector(tmp_path / "run")


def test_what_the_reference_lacks_is_refused_before_the_folder_is_taken(data: tuple[str, str], tmp_path: Path) -> None:
    for setting in ("data.colour=0.2", "data.vertical_flip=0.5", "solver.norm_weight_decay=0.0"):
        with pytest.raises(ValueError, match=setting.split("=")[0]):
            train(recipe_of(RECIPES[0], *data, setting), tmp_path / "run", progress=False)
        assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_a_published_backbone_is_asked_for(data: tuple[str, str], tmp_path: Path) -> None:
    """timm's own weights are for other images."""
    with pytest.raises(InputError, match=r"^init: .*vovnet convert"):
        train(recipe_of(RECIPES[0], *data, "model.pretrained=true"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_sliver_that_single_precision_takes_away_does_not_stop_the_training(tmp_path: Path) -> None:
    """Flipped, its sides fall together, which torchvision refuses."""
    data = write_data(tmp_path / "data", 2)
    path = tmp_path / "data" / "instances.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["bbox"] = [0.3, 5, 1.000001, 40]
    path.write_text(json.dumps(content))
    settings = (
        "data.val=[]",
        "data.flip=1.0",
        "solver.batch_size=1",
        "solver.max_iterations=2",
        "data.train_min_sizes=[72]",
    )
    train(recipe_of(RECIPES[1], data[0], *settings), tmp_path / "run", progress=False)
    assert len(losses_of(tmp_path / "run")) == 1


def batches_of(recipe: Recipe, dataset: Any, rank: int, world_size: int, count: int) -> list[list[int]]:
    """The images of a process's first batches."""
    accumulate = recipe.solver.accumulate
    batches = rules_of(recipe.model).training_batches(
        dataset,
        recipe.data,
        batch_size=recipe.solver.batch_size // (world_size * accumulate),
        seed=recipe.solver.seed,
        rank=rank,
        world_size=world_size,
        passes=accumulate,
    )
    return [[int(target["image_id"]) for target in next(batches)[1]] for _ in range(count)]


def test_accumulation_sees_the_batches_of_several_processes(data: tuple[str, str]) -> None:
    one = recipe_of(RECIPES[0], *data, "solver.batch_size=4", "solver.accumulate=2")
    two = recipe_of(RECIPES[0], *data, "solver.batch_size=4")
    dataset = rules_of(one.model).dataset_class(one.data.train, masks=False, training=True)
    alone = batches_of(one, dataset, 0, 1, 12)
    together = [batches_of(two, dataset, rank, 2, 6) for rank in range(2)]
    assert alone == [batch for pair in zip(*together, strict=True) for batch in pair]


def torchrun(*arguments: object) -> subprocess.CompletedProcess[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        2,
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        port,
    ]
    return subprocess.run(
        list(map(str, [sys.executable, *launcher, "-m", "vovnet.detection.train", *arguments])),
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_two_processes_train_as_one_that_accumulates_and_leave_out_together(tmp_path: Path) -> None:
    """With image 2 a crowd alone: only one of the processes has it in a batch."""
    data = write_data(tmp_path / "data", 7, without_objects=(2,))
    # Group norms, as batch norms' statistics are each process's own.
    norms = ("model.norm=gn", "data.flip=0.5", "solver.batch_size=4")
    settings = (*data, *SAMPLE_ALL, *norms)
    one = recipe_of(RECIPES[1], *settings, "solver.accumulate=2")
    train(one, tmp_path / "alone", progress=False)
    (tmp_path / "two.yaml").write_text(recipe_to_yaml(recipe_of(RECIPES[1], *settings)))
    done = torchrun(tmp_path / "two.yaml", "--output", tmp_path / "together")
    assert done.returncode == 0, done.stderr
    alone, together = losses_of(tmp_path / "alone"), losses_of(tmp_path / "together")
    assert 0 < len(alone) < ITERATIONS
    assert [line["iteration"] for line in alone] == [line["iteration"] for line in together]
    for first, second in zip(alone, together, strict=True):
        assert second == pytest.approx(first, rel=1e-5, abs=1e-6)


def test_a_schedule_that_was_saved_goes_on_where_it_was(data: tuple[str, str], tmp_path: Path) -> None:
    recipe = recipe_of(RECIPES[0], *data, "data.val=[]")
    with pytest.raises(TrainingInterrupted):
        train(recipe, tmp_path / "run", callbacks=[InterruptAt(2)], progress=False)
    rules, categories = rules_of(recipe.model), [{"id": 7, "name": "square"}]
    run = prepare(recipe, rules, tmp_path / "run", torch.device("cpu"), categories, resume=True)
    wanted = 0.002 * learning_rate_factor(recipe.solver, 3)
    assert [group["lr"] for group in run.optimizer.param_groups] == pytest.approx([wanted, 2 * wanted])
    assert [group["weight_decay"] for group in run.optimizer.param_groups] == [1e-4, 0]
