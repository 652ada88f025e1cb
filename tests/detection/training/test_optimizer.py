"""Parameter groups and learning rates, against torch's own schedulers."""

import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR

from vovnet.detection.config.schema import SolverRecipe
from vovnet.detection.training.optimizer import (
    build_optimizer,
    build_schedule,
    learning_rate_factor,
    scaled_learning_rate,
)


def _rates(solver: SolverRecipe, count: int) -> list[float]:
    optimizer = build_optimizer(nn.Linear(2, 2), solver)
    schedule = build_schedule(optimizer, solver)
    rates = []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return rates


def test_steps_equal_torchs_multi_step_schedule() -> None:
    solver = SolverRecipe(base_lr=0.1, steps=[4, 8], max_iterations=12, warmup_iterations=0)
    reference = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    schedule = MultiStepLR(reference, [4, 8])
    expected = []
    for _ in range(12):
        expected.append(reference.param_groups[0]["lr"])
        reference.step()
        schedule.step()
    assert _rates(solver, 12) == pytest.approx(expected)


def test_warm_up_equals_torchs_linear_schedule() -> None:
    solver = SolverRecipe(base_lr=0.1, steps=[], warmup_iterations=5, warmup_factor=0.2, max_iterations=10)
    reference = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    schedule = LinearLR(reference, start_factor=0.2, total_iters=5)
    expected = []
    for _ in range(10):
        expected.append(reference.param_groups[0]["lr"])
        reference.step()
        schedule.step()
    assert _rates(solver, 10) == pytest.approx(expected)


def test_cosine_equals_torchs_and_ends_at_zero() -> None:
    solver = SolverRecipe(base_lr=0.1, schedule="cosine", warmup_iterations=0, max_iterations=10)
    reference = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    schedule = CosineAnnealingLR(reference, T_max=10)
    expected = []
    for _ in range(10):
        expected.append(reference.param_groups[0]["lr"])
        reference.step()
        schedule.step()
    assert _rates(solver, 10) == pytest.approx(expected)
    assert math.isclose(learning_rate_factor(solver, 10), 0.0, abs_tol=1e-12)


def test_the_rate_is_scaled_linearly_with_the_batch() -> None:
    assert scaled_learning_rate(SolverRecipe(base_lr=0.02, reference_batch_size=16, batch_size=4)) == 0.005


def test_biases_and_norms_have_their_own_groups_and_each_parameter_stands_once() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.Linear(4, 2))
    net[3].weight.requires_grad_(False)
    solver = SolverRecipe(
        base_lr=0.02, batch_size=16, weight_decay=0.1, norm_weight_decay=0.0, bias_weight_decay=0.05, bias_lr_factor=2.0
    )
    weights, biases, norms = build_optimizer(net, solver).param_groups
    assert [tuple(p.shape) for p in weights["params"]] == [(4, 3, 3, 3)]
    assert [tuple(p.shape) for p in biases["params"]] == [(4,), (2,)]
    assert len(norms["params"]) == 4
    assert (weights["lr"], biases["lr"], norms["lr"]) == (0.02, 0.04, 0.02)
    assert (weights["weight_decay"], biases["weight_decay"], norms["weight_decay"]) == (0.1, 0.05, 0.0)
