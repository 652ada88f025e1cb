"""Parameter groups and learning rates, against the reference's tables."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from vovnet.detection.config.loading import load_recipe
from vovnet.detection.config.solver import SolverRecipe
from vovnet.detection.legacy.rules import LegacyRules
from vovnet.errors import InputError


def recipe(**fields: Any) -> SolverRecipe:
    """The published 2x schedule."""
    published = {
        "max_iterations": 180_000,
        "steps": [120_000, 160_000],
        "warmup_factor": 0.01,
        "bias_lr_factor": 2.0,
        "bias_weight_decay": 0.0,
    }
    return SolverRecipe(**{**published, **fields})


class Named(nn.Module):
    """Parameters of given names, which may have dots."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        for name in names:
            module: nn.Module = self
            *path, leaf = name.replace("/", ".").split(".")
            for part in path:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = module.get_submodule(part)
            module.register_parameter(leaf, nn.Parameter(torch.zeros(1)))


@pytest.mark.parametrize(("config", "warmup"), [("frcn_v39", 0.01), ("frcn_r50", 1 / 3)])
def test_rates_and_groups_are_the_references(shared: Path, config: str, warmup: float) -> None:
    golden = json.loads((shared / "reference" / "golden" / f"lr_{config}.json").read_text())
    solver = recipe(warmup_factor=warmup)
    model = Named([group["key"] for group in golden["groups"]])
    optimizer = LegacyRules().build_optimizer(model, solver)
    ours = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    assert len(ours) == len(golden["groups"])
    for group in golden["groups"]:
        mine = ours[id(model.get_parameter(group["key"].replace("/", ".")))]
        assert mine["initial_lr" if "initial_lr" in mine else "lr"] == group["base_lr"]
        for key in ("weight_decay", "momentum", "dampening", "nesterov"):
            assert mine[key] == group[key], key
    schedule = LegacyRules().build_schedule(optimizer, solver)
    for update, rates in golden["table"].items():
        if update != "0":  # no update has it
            found = [base * schedule.lr_lambdas[0](int(update) - 1) for base in schedule.base_lrs]
            assert found == [rates["weight"], rates["bias"]], update


def test_a_scheduler_stepped_after_each_update_gives_these_rates(shared: Path) -> None:
    golden = json.loads((shared / "reference" / "golden" / "lr_frcn_v39.json").read_text())["table"]
    optimizer = LegacyRules().build_optimizer(nn.Linear(2, 2), recipe())
    schedule = LegacyRules().build_schedule(optimizer, recipe())
    for update in range(1, 502):
        rates = [group["lr"] for group in optimizer.param_groups]
        if str(update) in golden:
            assert rates == [golden[str(update)]["weight"], golden[str(update)]["bias"]], update
        optimizer.step()
        schedule.step()


def test_norms_biases_are_biases_and_what_is_frozen_is_left_out() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4), FrozenBatchNorm2d(4), nn.Linear(4, 2))
    model[3].weight.requires_grad_(False)
    weights, biases = LegacyRules().build_optimizer(model, recipe()).param_groups
    assert [id(one) for one in weights["params"]] == [id(model[0].weight), id(model[1].weight)]
    assert [id(one) for one in biases["params"]] == [id(model[0].bias), id(model[1].bias), id(model[3].bias)]
    assert (weights["lr"], weights["weight_decay"]) == (0.02, 1e-4)
    assert (biases["lr"], biases["weight_decay"]) == (0.04, 0)


def test_the_rate_follows_the_batch() -> None:
    optimizer = LegacyRules().build_optimizer(nn.Linear(2, 2), recipe(batch_size=4))
    assert [group["lr"] for group in optimizer.param_groups] == [0.005, 0.01]


def test_norms_decay_like_other_weights() -> None:
    with pytest.raises(InputError, match="norm_weight_decay"):
        LegacyRules().build_optimizer(nn.Linear(2, 2), recipe(norm_weight_decay=0.0))


@pytest.mark.parametrize(
    ("name", "overrides", "way"),
    [
        ("faster_rcnn_V_39_FPN_1x", [], "pytorchcv's weights of vovnet39"),
        ("faster_rcnn_R_50_FPN_1x", [], "init=OUT model.stride_in_1x1=false"),
        ("faster_rcnn_R_50_FPN_1x", ["model.stride_in_1x1=false"], "init=OUT, or"),
        ("faster_rcnn_V_39_FPN_1x", ["model.backbone=ese_vovnet39b_all"], "convert weights of ese_vovnet39b_all"),
    ],
)
def test_a_training_without_a_start_says_the_way_to_one(name: str, overrides: list[str], way: str) -> None:
    with pytest.raises(InputError, match=r"^init: ") as caught:
        LegacyRules().check_training(load_recipe(name, overrides), resume=False)
    assert way in str(caught.value)
    assert "--input bgr255" in str(caught.value)
    LegacyRules().check_training(load_recipe(name, [*overrides, "init=somewhere"]), resume=False)


@pytest.mark.parametrize(
    "fields",
    [{"optimizer": "adamw"}, {"optimizer_args": {"eps": 1e-6}}, {"layer_decay": 0.9}, {"backbone_lr_factor": 0.1}],
)
def test_another_optimizer_than_the_references_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=rf"solver\.{next(iter(fields))}: legacy"):
        LegacyRules().build_optimizer(nn.Linear(2, 2), recipe(**fields))
