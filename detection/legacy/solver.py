"""The reference's parameter groups, and its schedule, stepped before the update."""

from __future__ import annotations

from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from vovnet.detection.config.schema import SolverRecipe
from vovnet.detection.training.optimizer import learning_rate_factor, scaled_learning_rate
from vovnet.errors import InputError


def check_legacy_solver(solver: SolverRecipe) -> None:
    """Refuse a decay of norms alone, which would need a third group.

    Raises:
        InputError: the recipe wants one.
    """
    if solver.norm_weight_decay is not None:
        raise InputError(
            f"solver.norm_weight_decay: legacy conventions treat norms' weights like others; expected null, got "
            f"{solver.norm_weight_decay:g} (model.conventions=torchvision has it)"
        )


def build_legacy_optimizer(model: nn.Module, solver: SolverRecipe) -> SGD:
    """SGD with momentum over every parameter that trains, in at most two groups: weights, biases.

    Reference solver/build.py:7-20, which makes a group of each parameter and looks for "bias" in its name: norms'
    biases are biases, and norms' weights decay like any others.

    Raises:
        InputError: the recipe wants another decay for norms, which would need a third group.
    """
    check_legacy_solver(solver)
    lr, decay = scaled_learning_rate(solver), solver.weight_decay
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    weights = [parameter for name, parameter in trained if name.rpartition(".")[2] != "bias"]
    biases = [parameter for name, parameter in trained if name.rpartition(".")[2] == "bias"]
    groups = [
        {"params": weights, "lr": lr, "weight_decay": decay},
        {
            "params": biases,
            "lr": lr * solver.bias_lr_factor,
            "weight_decay": decay if solver.bias_weight_decay is None else solver.bias_weight_decay,
        },
    ]
    return SGD(
        [group for group in groups if group["params"]], lr=lr, momentum=solver.momentum, nesterov=solver.nesterov
    )


def build_legacy_schedule(optimizer: SGD, solver: SolverRecipe) -> LambdaLR:
    """The schedule as a torch scheduler that is stepped once an iteration, after the update.

    The reference steps its own before the forward pass (engine/trainer.py:66), so that its first update has the factor
    of 1 finished one; this starts there. Factors are those of solver/lr_scheduler.py:39-52.
    """
    return LambdaLR(optimizer, lambda finished: learning_rate_factor(solver, finished + 1))
