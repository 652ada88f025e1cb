"""Parameter groups and learning rates, against torch's own schedulers."""

import math
from typing import Any

import pytest
import torch
from timm.optim import param_groups_weight_decay
from torch import nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR

from vovnet.adapters import fpn_backbone
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.config.solver import SolverRecipe
from vovnet.detection.training.optimizer import (
    build_optimizer,
    build_schedule,
    learning_rate_factor,
    scaled_learning_rate,
)
from vovnet.detection.training.rules import TrainingRules
from vovnet.errors import InputError


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


class Detector(nn.Module):
    """As much of a detector as an optimizer's groups depend on."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.backbone = fpn_backbone(name, out_channels=8, norm="bn", backbone_args=ARGS.get(name))
        self.head = nn.Linear(8, 2)


ARGS = {"test_vit": {"dynamic_img_size": True}}


def rules_optimizer(detector: Detector, name: str, **solver: Any) -> tuple[torch.optim.Optimizer, SolverRecipe]:
    settings = {"base_lr": 0.01, "batch_size": 16, "weight_decay": 0.05}
    recipe = SolverRecipe(**{**settings, **solver})
    network = ModelRecipe(backbone=name, backbone_args=ARGS.get(name, {}))
    return TrainingRules().build_optimizer(detector, recipe, network), recipe


def values_of(optimizer: torch.optim.Optimizer, detector: nn.Module, key: str) -> dict[str, float]:
    groups = {parameter: group[key] for group in optimizer.param_groups for parameter in group["params"]}
    return {name: groups[parameter] for name, parameter in detector.named_parameters()}


def test_adamw_decays_what_timm_lets_decay() -> None:
    detector = Detector("test_convnext")
    optimizer, _ = rules_optimizer(detector, "test_convnext", optimizer="adamw")
    expected = {
        parameter: group["weight_decay"]
        for group in param_groups_weight_decay(detector, 0.05)
        for parameter in group["params"]
    }
    names = dict(detector.named_parameters())
    assert values_of(optimizer, detector, "weight_decay") == {name: expected[names[name]] for name in names}
    given, _ = rules_optimizer(detector, "test_convnext", optimizer="adamw", norm_weight_decay=0.3)
    assert values_of(given, detector, "weight_decay")["backbone.body.stem_1.weight"] == 0.3


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_rates_fall_from_the_heads_to_the_stem(optimizer: str) -> None:
    detector = Detector("test_convnext")
    built, _ = rules_optimizer(detector, "test_convnext", optimizer=optimizer, layer_decay=0.5, backbone_lr_factor=0.1)
    rates = values_of(built, detector, "lr")
    assert {rate for name, rate in rates.items() if not name.startswith("backbone.body.")} == {0.01}
    body = {name: rate for name, rate in rates.items() if name.startswith("backbone.body.")}
    # One stem and nine blocks of timm's group_matcher; the classifier's head, which is not here, would be the tenth.
    assert max(body.values()) == pytest.approx(0.01 * 0.1 * 0.5)
    assert rates["backbone.body.stem_0.weight"] == pytest.approx(0.01 * 0.1 * 0.5**10)
    assert built.param_groups[0]["lr"] == 0.01  # what a run shows


def test_a_backbone_without_layers_has_no_layer_decay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("timm.models.resnet.ResNet.group_matcher")
    detector = Detector("test_resnet")
    with pytest.raises(InputError, match=r"solver\.layer_decay"):
        rules_optimizer(detector, "test_resnet", layer_decay=0.5)
    rules_optimizer(detector, "test_resnet", backbone_lr_factor=0.5)


def test_plain_sgd_has_the_groups_and_the_arguments_that_it_always_had() -> None:
    """Weights, biases and norms in the order of the modules: a run of an earlier version can be resumed."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    state = build_optimizer(net, SolverRecipe(batch_size=16)).state_dict()
    reference = torch.optim.SGD(
        [
            {"params": [net[0].weight, net[2].weight], "lr": 0.02, "weight_decay": 0.0001},
            {"params": [net[0].bias, net[2].bias], "lr": 0.02, "weight_decay": 0.0001},
            {"params": list(net[1].parameters()), "lr": 0.02, "weight_decay": 0.0001},
        ],
        lr=0.02,
        momentum=0.9,
    )
    assert state == reference.state_dict()
