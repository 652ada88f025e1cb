"""A step of the training against sums done by hand, and what it says of data that it cannot compute with."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import Squares, short_recipe
from torch import Tensor, nn

from vovnet.detection.config.schema import Recipe
from vovnet.detection.config.solver import SolverRecipe
from vovnet.detection.training.engine import train
from vovnet.detection.training.iteration import NonFiniteLossError, step
from vovnet.detection.training.optimizer import build_optimizer, build_schedule
from vovnet.detection.training.run import Run
from vovnet.errors import InputError


@pytest.mark.parametrize("backbone", ["test_resnet", "vovnet27_slim"])
def test_a_batch_norm_with_one_value_names_what_helps(backbone: str, tmp_path: Path) -> None:
    recipe = short_recipe(batch_size=1)
    recipe.model.backbone = backbone
    recipe.data.train_min_sizes, recipe.data.train_max_size = [32], 32
    with pytest.raises(InputError) as caught:
        train(recipe, tmp_path / "run", train_dataset=Squares(), progress=False)
    for word in ("model.norm", "solver.batch_size", "data.train_min_sizes", "32"):
        assert word in str(caught.value)


def test_gradients_that_are_not_finite_stop_before_the_weights_change() -> None:
    run = by_hand(SolverRecipe(base_lr=0.1, batch_size=2, reference_batch_size=2, warmup_iterations=0))
    run.detector.layer.weight.register_hook(lambda gradient: gradient * math.inf)
    before = [parameter.clone() for parameter in run.detector.parameters()]
    with pytest.raises(NonFiniteLossError, match=r"iteration 1, image ids \[0, 1\] \(gradient norm"):
        step(run, [image_batch(2)])
    assert all(torch.equal(old, new) for old, new in zip(before, run.detector.parameters(), strict=True))


class Regression(nn.Module):
    """Stands for a detector: takes images and targets, returns losses that depend on nothing random."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1, dtype=torch.float64)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        values = self.layer(torch.stack([image.flatten().double() for image in images]))[:, 0]
        wanted = torch.stack([target["labels"][0].double() for target in targets])
        return {"loss_a": (values - wanted).square().mean(), "loss_b": values.abs().mean()}


def by_hand(solver: SolverRecipe) -> Run:
    torch.manual_seed(3)
    model = Regression()
    optimizer = build_optimizer(model, solver)
    return Run(
        recipe=Recipe(solver=solver),
        output=Path("none"),
        device=torch.device("cpu"),
        detector=model,
        wrapped=model,
        categories=[],
        optimizer=optimizer,
        schedule=build_schedule(optimizer, solver),
        scaler=torch.amp.GradScaler("cpu", enabled=False),
        ema=None,
    )


def image_batch(count: int, first: int = 0) -> tuple[list[Tensor], list[dict[str, Any]]]:
    images = [torch.full((1, 2, 2), 40 * (first + i), dtype=torch.uint8) for i in range(count)]
    return images, [{"labels": torch.tensor([first + i]), "image_id": first + i} for i in range(count)]


def test_a_step_is_sgd_with_momentum_decay_and_clipping() -> None:
    solver = SolverRecipe(
        base_lr=0.1,
        batch_size=4,
        reference_batch_size=4,
        weight_decay=0.01,
        clip_grad_norm=0.5,
        warmup_iterations=0,
        steps=[1],
    )
    run = by_hand(solver)
    reference = copy.deepcopy(run.detector)
    optimizer = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for lr in (0.1, 0.01):
        for group in optimizer.param_groups:
            group["lr"] = lr
        images, targets = image_batch(4)
        losses = reference([image.float() / 255 for image in images], targets)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        nn.utils.clip_grad_norm_(reference.parameters(), 0.5)
        optimizer.step()
        reported = step(run, [image_batch(4)])
        assert reported["loss"] == pytest.approx(sum(losses.values()).item(), rel=1e-6)
        assert run.last_lr == pytest.approx(lr)
    for ours, theirs in zip(run.detector.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_accumulated_batches_equal_one_large_batch() -> None:
    solver = SolverRecipe(base_lr=0.1, batch_size=4, reference_batch_size=4, warmup_iterations=0)
    whole, parts = by_hand(solver), by_hand(replace(solver, accumulate=2))
    together = step(whole, [image_batch(4)])
    in_parts = step(parts, [image_batch(2), image_batch(2, first=2)])
    assert in_parts == pytest.approx(together, rel=1e-6)
    for ours, theirs in zip(whole.detector.parameters(), parts.detector.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
