"""Each logger against its own offline mode, where it is installed; and what it is told where it would ask or refuse."""

from __future__ import annotations

import importlib.machinery
import json
import sqlite3
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_runs import Squares, short_recipe

from vovnet.detection.training import engine
from vovnet.detection.training.engine import train
from vovnet.detection.training.loggers import LOGGERS
from vovnet.detection.training.metrics_log import read_metrics
from vovnet.errors import InputError

OWN = ("WANDB_", "MLFLOW_", "TRACKIO_")


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings of the user's, and the current folder is the test's."""
    import os

    for name in [name for name in os.environ if name.startswith(OWN)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(engine, "plot_curves", lambda log, out: None)


def needs(name: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not LOGGERS[name].installed(), reason=f"needs {name}")


def run_to(output: Path, logger: str, iterations: int, resume: bool = False) -> None:
    recipe = short_recipe(max_iterations=iterations, evaluate_every=2)
    recipe.log.loggers = [logger]
    data: dict[str, Any] = {"train_dataset": Squares(), "val_dataset": Squares(), "progress": False, "device": "cpu"}
    train(recipe, output, resume=resume, **data)


def logged(output: Path, key: str) -> list[tuple[int, float]]:
    return [(line["iteration"], line[key]) for line in read_metrics(output / "metrics.jsonl") if key in line]


def kept(output: Path, name: str) -> dict[str, str]:
    return torch.load(output / "last.pt", weights_only=True)["loggers"][name]


@needs("wandb")
def test_a_run_and_its_resumption_are_one_record_of_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    run_to(tmp_path / "mine", "wandb", 2)
    names = kept(tmp_path / "mine", "wandb")
    run_to(tmp_path / "mine", "wandb", 3, resume=True)
    assert kept(tmp_path / "mine", "wandb") == names
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert [file.name for file in files] == [f"run-{names['id']}.wandb"] * 2
    assert names["project"] == "vovnet"
    text = b"".join(file.read_bytes() for file in files)
    for key in (b"train/loss", b"train/memory", b"val/box_ap", b"test_resnet"):
        assert key in text


@needs("wandb")
def test_wandb_without_a_login_is_refused(tmp_path: Path) -> None:
    import wandb

    wandb.teardown()  # what it has read of the environment in another test
    with pytest.raises(InputError, match="WANDB_MODE=offline"):
        run_to(tmp_path / "mine", "wandb", 2)
    assert not (tmp_path / "mine").exists()


@needs("mlflow")
@pytest.mark.parametrize("store", ["sqlite:///{}/own.db", "file://{}/own"])
def test_a_run_and_its_resumption_are_one_record_of_mlflow(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.format(tmp_path))
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run_to(tmp_path / "mine", "mlflow", 2)
    run_to(tmp_path / "mine", "mlflow", 3, resume=True)
    client = MlflowClient()
    experiment = client.get_experiment_by_name("vovnet")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.status, run.info.run_name, run.data.params["solver.batch_size"]) == ("FINISHED", "mine", "2")
    for ours, theirs in (("loss", "train/loss"), ("box_ap", "val/box_ap")):
        history = client.get_metric_history(run.info.run_id, theirs)
        for step, value in logged(tmp_path / "mine", ours):
            assert value == pytest.approx(next(one.value for one in history if one.step == step))


@needs("mlflow")
def test_mlflow_that_cannot_write_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/file/own.db")
    with pytest.raises(InputError, match="MLFLOW_TRACKING_URI"):
        run_to(tmp_path / "mine", "mlflow", 2)
    assert not (tmp_path / "mine").exists()


@needs("trackio")
def test_a_run_and_its_resumption_are_one_record_of_trackio(tmp_path: Path) -> None:
    from trackio.utils import TRACKIO_DIR  # read when it is imported

    run_to(tmp_path / "mine", "trackio", 2)
    names = kept(tmp_path / "mine", "trackio")
    run_to(tmp_path / "mine", "trackio", 3, resume=True)
    assert kept(tmp_path / "mine", "trackio") == names
    with sqlite3.connect(Path(TRACKIO_DIR) / "vovnet.db") as base:
        rows = base.execute(
            "select step, cast(metrics as blob) from metrics where run_name = ?", [names["name"]]
        ).fetchall()
    found = {(step, json.loads(text)["train/loss"]) for step, text in rows if b"train/loss" in text}
    assert found == set(logged(tmp_path / "mine", "loss"))


def test_wandb_never_asks_for_a_login_in_the_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    module: Any = ModuleType("wandb")
    module.__spec__ = importlib.machinery.ModuleSpec("wandb", None)
    module.setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode="online"))
    module.login = lambda **options: asked.append(options)
    module.init = lambda **options: pytest.fail("it was begun without a login")
    monkeypatch.setitem(sys.modules, "wandb", module)
    with pytest.raises(InputError, match=r"log\.loggers: wandb .*wandb login"):
        run_to(tmp_path / "mine", "wandb", 2)
    assert [options["prompt"] for options in asked] == [False]


def test_a_package_that_is_damaged_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("trackio")
    module.__spec__ = importlib.machinery.ModuleSpec("trackio", None)
    monkeypatch.setitem(sys.modules, "trackio", module)
    with pytest.raises(InputError, match=r"log\.loggers: trackio .*AttributeError"):
        run_to(tmp_path / "mine", "trackio", 2)
