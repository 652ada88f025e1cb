"""Optimizers of timm by name: each one works and is resumed exactly, or is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm.optim
import torch
from torch import nn

from vovnet.detection.config.solver import SolverRecipe
from vovnet.detection.training.optimizer import build_optimizer, build_schedule
from vovnet.detection.training.state import load_state, save_state
from vovnet.detection.training.timm_optimizer import check_optimizer
from vovnet.errors import InputError


def solver_of(name: str, **settings: Any) -> SolverRecipe:
    steps: dict[str, Any] = {"warmup_iterations": 4, "base_lr": 0.01, "steps": []}
    return SolverRecipe(**{"optimizer": name, **steps, **settings})


class Training:
    """A training of a network of every kind of parameter, on data that are the same in each of its iterations."""

    def __init__(self, solver: SolverRecipe) -> None:
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 5)
        )
        self.optimizer = build_optimizer(self.net, solver)
        self.schedule = build_schedule(self.optimizer, solver)

    def go_on(self, start: int, stop: int) -> None:
        for number in range(start, stop):
            images = torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(number))
            self.optimizer.zero_grad(set_to_none=True)
            self.net(images).square().mean().backward()
            self.optimizer.step()
            self.schedule.step()

    def save(self, path: Path) -> None:
        save_state(path, {"net": self.net.state_dict(), "optimizer": self.optimizer.state_dict()})

    def restore(self, path: Path, iteration: int) -> None:
        state = load_state(path)
        self.net.load_state_dict(state["net"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.last_epoch = iteration
        for group, base, factor in zip(
            self.optimizer.param_groups, self.schedule.base_lrs, self.schedule.lr_lambdas, strict=True
        ):
            group["lr"] = base * factor(iteration)


def _usable(name: str) -> bool:
    try:
        check_optimizer(solver_of(name))
    except InputError:
        return False
    return True


def test_every_optimizer_of_timm_is_resumed_exactly_or_refused(tmp_path: Path) -> None:
    names = timm.optim.list_optimizers()
    usable = [name for name in names if _usable(name)]
    # Those of apex and bitsandbytes need a GPU and their packages.
    foreign = [name for name in names if name.startswith(("fused", "bnb"))]
    assert set(names) - set(usable) <= {*foreign, "adahessian", "kron", "kronc", "kronw"}
    for name in usable:
        whole, first, second = (Training(solver_of(name)) for _ in range(3))
        whole.go_on(0, 8)
        first.go_on(0, 5)
        first.save(tmp_path / "last.pt")
        second.restore(tmp_path / "last.pt", 5)
        second.go_on(5, 8)
        for one, other in zip(whole.net.state_dict().values(), second.net.state_dict().values(), strict=True):
            assert torch.equal(one, other), name


def test_an_optimizer_that_timm_does_not_know_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match=r"solver\.optimizer: .*'lambo'.*'lamb'"):
        check_optimizer(solver_of("lambo"))


@pytest.mark.parametrize(
    ("solver", "key"),
    [
        (solver_of("adahessian"), r"solver\.optimizer: adahessian"),
        (solver_of("kron"), r"solver\.optimizer: kron"),
        (solver_of("adamw", optimizer_args={"beta": 1}), r"solver\.optimizer_args: .*beta"),
        (solver_of("adamw", optimizer_args={"betas": 0.9}), r"solver\.optimizer_args"),
        (solver_of("adamw", optimizer_args={"betas": [0.9, 1.5]}), r"solver\.optimizer_args: .*1\.5"),
        (solver_of("adamw", optimizer_args={"eps": "small"}), r"solver\.optimizer_args"),
        (solver_of("lamb", optimizer_args={"lr": 0.1}), r"solver\.optimizer_args: lr .*solver\.base_lr"),
        (solver_of("muon", optimizer_args={"conv_mode": "no"}), r"solver\.optimizer_args: .*conv_mode"),
        (solver_of("adamw", nesterov=True), r"solver\.nesterov"),
        (solver_of("sgd", optimizer_args={"dampening": 0.1}), r"solver\.optimizer_args"),
    ],
)
def test_what_an_optimizer_cannot_do_is_one_line(solver: SolverRecipe, key: str) -> None:
    with pytest.raises(InputError, match=f"^{key}") as caught:
        check_optimizer(solver)
    assert "\n" not in str(caught.value)


def test_arguments_reach_the_optimizer_and_checking_draws_no_random_numbers() -> None:
    solver = solver_of("adamw", optimizer_args={"betas": [0.8, 0.95], "eps": 1e-6}, batch_size=4)
    before = torch.get_rng_state()
    check_optimizer(solver)
    assert torch.equal(torch.get_rng_state(), before)
    optimizer = build_optimizer(nn.Linear(2, 2), solver)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {(group["betas"], group["eps"], group["lr"]) for group in optimizer.param_groups} == {
        ((0.8, 0.95), 1e-6, 0.01 * 4 / 16)
    }
