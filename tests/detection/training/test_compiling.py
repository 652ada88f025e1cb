"""A compiled backbone: the training is that of the plain one, with every other option; what cannot be is one line."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Squares, assert_same_runs, lines_of, short_recipe, tiny_model
from torch import Tensor, nn

from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.config.schema import Recipe
from vovnet.detection.training import compiling
from vovnet.detection.training.callbacks import Callback
from vovnet.detection.training.compiling import compile_backbone
from vovnet.detection.training.engine import train
from vovnet.detection.training.run import Run
from vovnet.detection.training.signals import TrainingInterrupted
from vovnet.errors import InputError

CPU = torch.device("cpu")


class StopAt(Callback):
    def __init__(self, iteration: int) -> None:
        self.at = iteration

    def iteration(self, run: Run, losses: Mapping[str, float]) -> None:
        if run.iteration == self.at:
            signal.raise_signal(signal.SIGINT)


def recipe_of(**solver: Any) -> Recipe:
    recipe = short_recipe(evaluate_every=2, compile=True, **solver)
    recipe.model = tiny_model("test_resnet", box_score_thresh=0.0)
    return recipe


def go(recipe: Recipe, output: Path, **settings: Any) -> list[dict[str, float]]:
    train(recipe, output, train_dataset=Squares(), val_dataset=Squares(), progress=False, **settings)
    return lines_of(output)


def test_a_compiled_training_is_the_plain_one_and_is_resumed_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With AMP, accumulation, EMA, channels-last and AdamW; images of two sizes, and evaluations, too."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")  # the same operators; only the graph is captured
    recipe = recipe_of(amp="bf16", accumulate=2, batch_size=4, optimizer="adamw", base_lr=1e-3)
    compiled = go(recipe, tmp_path / "compiled")
    assert "compiled the backbone" in capsys.readouterr().out
    with pytest.raises(TrainingInterrupted):
        go(recipe, tmp_path / "resumed", callbacks=[StopAt(1)])
    go(recipe, tmp_path / "resumed", resume=True)
    assert_same_runs(tmp_path / "resumed", tmp_path / "compiled")
    recipe.solver.compile = False
    assert go(recipe, tmp_path / "plain") == compiled


class Broken(nn.Module):
    """A network that Python code divides into two graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.norm(self.conv(images))
        torch._dynamo.graph_break()
        return [maps]


def detector_of(body: nn.Module) -> nn.Module:
    detector = nn.Module()
    detector.backbone = nn.Module()
    detector.backbone.body = body
    return detector


def test_a_network_of_several_graphs_is_refused_and_left_as_it_was() -> None:
    body = Broken().eval()
    before = {name: value.clone() for name, value in body.state_dict().items()}
    recipe = Recipe(model=ModelRecipe(backbone="broken"))
    recipe.data.train_min_sizes, recipe.data.train_max_size = [32], 64
    with pytest.raises(InputError, match=r"^solver\.compile: broken cannot be compiled") as caught:
        compile_backbone(detector_of(body), recipe, CPU, 2, contextlib.nullcontext)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in body.state_dict().items())
    assert not body.training
    assert all(parameter.grad is None for parameter in body.parameters())


def test_a_missing_compiler_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(graph: Any, examples: Any) -> Any:
        raise FileNotFoundError("g++")

    monkeypatch.setattr(compiling, "BACKEND", absent)
    with pytest.raises(InputError, match=r"^solver\.compile: .*g\+\+"):
        go(recipe_of(), tmp_path / "run")


@pytest.mark.slow
def test_inductors_training_is_the_plain_one_up_to_rounding(tmp_path: Path) -> None:
    recipe = recipe_of(base_lr=1e-4)
    compiled = go(recipe, tmp_path / "compiled")
    recipe.solver.compile = False
    plain = go(recipe, tmp_path / "plain")
    assert compiled[0]["loss"] == pytest.approx(plain[0]["loss"], rel=1e-3)
