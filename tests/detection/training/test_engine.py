"""The training loop: runs that stop, go on, repeat and fail."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_runs
import torch
from tiny_runs import losses_of
from torch.utils.data import get_worker_info
from torchvision import tv_tensors

from vovnet.detection.checkpoints.folder import load_detector
from vovnet.detection.config.data import DataRecipe
from vovnet.detection.config.loading import load_recipe
from vovnet.detection.config.schema import LogRecipe, Recipe
from vovnet.detection.config.solver import SolverRecipe
from vovnet.detection.data.failures import LoaderError
from vovnet.detection.training.callbacks import Callback
from vovnet.detection.training.engine import train
from vovnet.detection.training.iteration import NonFiniteLossError
from vovnet.detection.training.run import RUN_FILES, Run
from vovnet.detection.training.signals import TrainingInterrupted
from vovnet.errors import InputError
from vovnet.processes.devices import computes_with_bf16


class Squares(tiny_runs.Squares):
    count = 6


def tiny_recipe(**solver: Any) -> Recipe:
    settings = {"base_lr": 0.01, "batch_size": 2, "reference_batch_size": 2, "max_iterations": 5, "steps": [4]}
    return Recipe(
        model=tiny_runs.tiny_model("vovnet27_slim"),
        data=DataRecipe(train_min_sizes=[56, 64], train_max_size=64, colour=0.2, workers=0),
        solver=SolverRecipe(**{**settings, "warmup_iterations": 2, **solver}),
        log=LogRecipe(log_every=1, evaluate_every=0, checkpoint_every=100),
    )


class InterruptAt(Callback):
    def __init__(self, iteration: int, number: signal.Signals = signal.SIGINT) -> None:
        self.at, self.number = iteration, number

    def iteration(self, run: Run, losses: Mapping[str, float]) -> None:
        if run.iteration == self.at:
            signal.raise_signal(self.number)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished") / "run"
    train(tiny_recipe(ema=0.9), folder, train_dataset=Squares(), val_dataset=Squares(), progress=False)
    return folder


def test_a_run_leaves_every_file_and_a_folder_that_loads(finished: Path) -> None:
    for name in RUN_FILES:
        assert (finished / name).stat().st_size > 0, name
    detector = load_detector(finished)
    assert detector.categories == [{"id": 7, "name": "square"}]
    assert set(detector([torch.rand(3, 50, 60)])[0]) == {"boxes", "labels", "scores"}
    assert not list(finished.glob(".tmp-*"))


def test_the_metrics_file_has_losses_and_evaluations(finished: Path) -> None:
    losses = losses_of(finished)
    assert [line["iteration"] for line in losses] == [1, 2, 3, 4, 5]
    parts = ("loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg")
    for line in losses:
        assert line["loss"] == pytest.approx(sum(line[part] for part in parts))
    last = json.loads((finished / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["iteration"] == 5
    assert {"box_ap", "box_ap50", "box_aps"} <= set(last)


def test_the_recipe_that_is_left_repeats_the_run(finished: Path, tmp_path: Path) -> None:
    recipe = load_recipe(finished / "recipe.yaml")
    train(recipe, tmp_path / "again", train_dataset=Squares(), val_dataset=Squares(), progress=False)
    assert losses_of(tmp_path / "again") == losses_of(finished)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on_with_the_same_losses(
    finished: Path, tmp_path: Path, number: signal.Signals
) -> None:
    recipe, run = tiny_recipe(ema=0.9), tmp_path / "run"
    data: dict[str, Any] = {"train_dataset": Squares(), "val_dataset": Squares(), "progress": False}
    with pytest.raises(TrainingInterrupted, match="resume=True"):
        train(recipe, run, callbacks=[InterruptAt(2, number)], **data)
    assert len(losses_of(run)) == 2
    torch.rand(17)  # whatever else happened to the random numbers meanwhile
    train(recipe, run, resume=True, **data)
    assert losses_of(run) == losses_of(finished)
    whole, parts = load_detector(finished).state_dict(), load_detector(run).state_dict()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_lines_that_a_killed_run_wrote_after_its_checkpoint_are_dropped(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(TrainingInterrupted):
        train(
            tiny_recipe(ema=0.9),
            run,
            train_dataset=Squares(),
            val_dataset=Squares(),
            progress=False,
            callbacks=[InterruptAt(3)],
        )
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"iteration": 4, "loss": 1}\n{"iterat')
    train(tiny_recipe(ema=0.9), run, train_dataset=Squares(), val_dataset=Squares(), progress=False, resume=True)
    assert losses_of(run) == losses_of(finished)


def test_a_loss_that_is_not_finite_stops_and_names_iteration_and_images(tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = tiny_recipe(base_lr=1e25, warmup_iterations=0)
    recipe.log.checkpoint_every = 1
    with pytest.raises(NonFiniteLossError, match=r"iteration [2-5], image ids \[10\d, 10\d\]"):
        train(recipe, run, train_dataset=Squares(), progress=False)
    saved = torch.load(run / "last.pt", weights_only=True)
    assert saved["iteration"] == len(losses_of(run)) >= 1


def test_a_folder_with_something_in_it_is_refused_and_kept(finished: Path, tmp_path: Path) -> None:
    before = (finished / "last.pt").read_bytes()
    with pytest.raises(InputError, match="--overwrite"):
        train(tiny_recipe(), finished, train_dataset=Squares(), progress=False)
    with pytest.raises(InputError, match="expected one of them"):
        train(tiny_recipe(), finished, train_dataset=Squares(), progress=False, resume=True, overwrite=True)
    assert (finished / "last.pt").read_bytes() == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="expected a folder"):
        train(tiny_recipe(), tmp_path / "file", train_dataset=Squares(), progress=False)


def test_overwriting_leaves_nothing_of_the_former_run(finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "best.pt").write_text("of a former run")
    train(tiny_recipe(max_iterations=1), run, train_dataset=Squares(), progress=False, overwrite=True)
    assert not (run / "best.pt").exists()
    assert (run / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"batch_size": 3, "accumulate": 2}, "solver.batch_size: expected a multiple"), ({"amp": "fp8"}, "solver.amp")],
)
def test_a_solver_that_cannot_work_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        train(tiny_recipe(**change), tmp_path / "run", train_dataset=Squares(), progress=False)


def test_a_wrong_number_of_classes_and_missing_data_are_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    recipe.model.num_classes = 3
    with pytest.raises(InputError, match=r"model\.num_classes: the recipe says 3, the training data has 1"):
        train(recipe, tmp_path / "a", train_dataset=Squares(), progress=False)
    with pytest.raises(InputError, match=r"data\.train: no training data"):
        train(tiny_recipe(), tmp_path / "b", progress=False)


def test_an_error_before_the_first_iteration_is_the_one_that_is_seen(tmp_path: Path) -> None:
    class Broken(Callback):
        def start(self, run: Run) -> None:
            raise OSError(28, "No space left on device", "log")

    with pytest.raises(OSError, match="No space left"):
        train(tiny_recipe(), tmp_path / "run", train_dataset=Squares(), callbacks=[Broken()])


def test_a_failing_evaluation_keeps_the_work_that_was_done(tmp_path: Path) -> None:
    class Unreadable(Squares):
        def __getitem__(self, index: int) -> tuple[tv_tensors.Image, dict[str, Any]]:
            raise InputError("truncated.jpg: truncated")

    run = tmp_path / "run"
    with pytest.raises(InputError, match=r"truncated\.jpg"):
        train(tiny_recipe(), run, train_dataset=Squares(), val_dataset=Unreadable(), progress=False)
    assert torch.load(run / "last.pt", weights_only=True)["iteration"] == 5


def test_what_a_folder_cannot_store_is_refused_before_training(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    recipe.model.rpn_pre_nms_top_n_test = 10**6
    with pytest.raises(InputError, match="rpn_pre_nms_top_n_test"):
        train(recipe, tmp_path / "run", train_dataset=Squares(), progress=False)
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_init_starts_from_another_runs_weights(finished: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(max_iterations=1, base_lr=0.0)
    recipe.init = str(finished)
    train(recipe, tmp_path / "run", train_dataset=Squares(), progress=False)
    parent, child = load_detector(finished), load_detector(tmp_path / "run")
    assert torch.equal(parent.backbone.fpn.inner_blocks[0][0].weight, child.backbone.fpn.inner_blocks[0][0].weight)


@pytest.mark.parametrize(
    "settings", [{"amp": "bf16"}, {"clip_grad_norm": 0.1}, {"schedule": "cosine", "accumulate": 2}]
)
def test_every_way_of_training_runs(settings: dict[str, Any], tmp_path: Path) -> None:
    train(tiny_recipe(max_iterations=2, **settings), tmp_path / "run", train_dataset=Squares(), progress=False)
    assert len(losses_of(tmp_path / "run")) == 2


def test_automatic_precision_is_written_down_as_what_it_was(tmp_path: Path) -> None:
    train(tiny_recipe(max_iterations=1, amp="auto"), tmp_path / "run", train_dataset=Squares(), progress=False)
    expected = "bf16" if computes_with_bf16(torch.device("cpu")) else "none"
    assert load_recipe(tmp_path / "run" / "recipe.yaml").solver.amp == expected


class SquaresThatAreCounted(Squares):
    """Writes a byte for each image that is loaded, in whatever process."""

    def __init__(self, log: Path) -> None:
        self.log = log

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, dict[str, Any]]:
        with self.log.open("ab", buffering=0) as file:
            file.write(b".")
        return super().__getitem__(index)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_loader_processes_load_no_image_that_is_not_trained_on(tmp_path: Path, accumulate: int) -> None:
    recipe = tiny_recipe(max_iterations=2, batch_size=2, accumulate=accumulate)
    recipe = replace(recipe, data=replace(recipe.data, workers=3))
    log = tmp_path / "log"
    train(recipe, tmp_path / "run", progress=False, train_dataset=SquaresThatAreCounted(log))
    assert log.stat().st_size == 4


class SquaresWithAWorkerThatDies(Squares):
    def __init__(self, number: int) -> None:
        self.number = number

    def __getitem__(self, index: int) -> tuple[tv_tensors.Image, dict[str, Any]]:
        if index == 3:
            assert get_worker_info() is not None
            os.kill(os.getpid(), self.number)
        return super().__getitem__(index)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGBUS], ids=["SIGKILL", "SIGBUS"])
@pytest.mark.parametrize("which", ["train_dataset", "val_dataset"])
def test_a_loader_process_that_dies_ends_the_run_in_one_line(tmp_path: Path, which: str, number: int) -> None:
    recipe = tiny_recipe(max_iterations=4)
    recipe = replace(recipe, data=replace(recipe.data, workers=1, timeout=60))
    datasets = {"train_dataset": Squares(), "val_dataset": Squares(), which: SquaresWithAWorkerThatDies(number)}
    with pytest.raises(LoaderError, match=r"data\.workers=0") as caught:
        train(recipe, tmp_path, progress=False, **datasets)
    assert signal.Signals(number).name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not multiprocessing.active_children()
    assert (tmp_path / "last.pt").exists() == (which == "val_dataset")


def test_a_loader_process_that_is_stopped_ends_the_run(tmp_path: Path) -> None:
    recipe = tiny_recipe(max_iterations=4)
    recipe = replace(recipe, data=replace(recipe.data, workers=1, timeout=2))
    with pytest.raises(LoaderError, match=r"2 s \(data\.timeout\)"):
        train(recipe, tmp_path, progress=False, train_dataset=SquaresWithAWorkerThatDies(signal.SIGSTOP))
    assert not multiprocessing.active_children()
