"""Optimizers of timm by name, checked before the first iteration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.optim.kron import Kron
from torch import nn
from torch.optim import Optimizer

from vovnet.detection.config.solver import SolverRecipe
from vovnet.errors import InputError, did_you_mean, reason

_FROM_RECIPE = {
    "lr": "solver.base_lr",
    "weight_decay": "solver.weight_decay",
    "momentum": "solver.momentum",
    "params": "no key, as all that are not frozen are trained",
    "opt": "solver.optimizer",
    "layer_decay": "solver.layer_decay",
    **dict.fromkeys(
        (
            *("layer_decay_min_scale", "layer_decay_no_opt_scale", "param_group_fn"),
            *("weight_decay_exclude_1d", "fallback_list", "fallback_no_weight_decay"),
        ),
        "no key, as the groups of parameters are made here",
    ),
}
"""Arguments of optimizers that a recipe gives with other keys."""


def check_optimizer(solver: SolverRecipe) -> None:
    """Check that timm has the optimizer, that it can work with gradients alone, and that its arguments fit.

    One update of two parameters is tried, because some optimizers check their arguments only then.

    Raises:
        InputError: the message begins with the key, ``solver.…``.
    """
    name = solver.optimizer
    known = [str(entry) for entry in list_optimizers()]
    if name not in known:
        raise InputError(
            f"solver.optimizer: timm knows no optimizer {name!r}; "
            f"{did_you_mean(name, known, 'timm.optim.list_optimizers() returns the names', most=3)}"
        )
    if get_optimizer_info(name).second_order:
        raise InputError(
            f"solver.optimizer: {name} needs second derivatives, and a training computes gradients alone; expected "
            "another, such as adamw"
        )
    if get_optimizer_info(name).opt_class is Kron:
        raise InputError(
            f"solver.optimizer: {name} compiles its update anew for each shape of a parameter, and a detector has a "
            "hundred of them; expected another, such as adamw"
        )
    for key in solver.optimizer_args:
        if key in _FROM_RECIPE:
            raise InputError(f"solver.optimizer_args: {key} is set by {_FROM_RECIPE[key]}; leave it out there")
    if name == "sgd":
        if solver.optimizer_args:
            raise InputError(
                "solver.optimizer_args: sgd has solver.momentum and solver.nesterov; expected {}, got "
                f"{solver.optimizer_args}"
            )
        return
    if solver.nesterov:
        raise InputError(
            f"solver.nesterov: it belongs to sgd; expected false with {name}, got true (some optimizers have it in "
            "solver.optimizer_args)"
        )
    _try_update(solver)


def create_optimizer(solver: SolverRecipe, groups: Sequence[dict[str, Any]], lr: float) -> Optimizer:
    """Return the optimizer that a recipe names over groups of parameters, each with its own rate and weight decay.

    Raises:
        InputError: the optimizer is not installed, or does not take these arguments.
    """
    args: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in solver.optimizer_args.items()
    }
    try:
        return create_optimizer_v2(
            list(groups), opt=solver.optimizer, lr=lr, weight_decay=0.0, momentum=solver.momentum, **args
        )
    except (AssertionError, ImportError) as error:  # of apex and bitsandbytes
        raise InputError(
            f"solver.optimizer: {solver.optimizer} cannot be used here ({reason(error)}); expected another, such as "
            "adamw"
        ) from error
    except Exception as error:  # whatever the classes of optimizers raise for arguments of other types
        raise _refused(solver, error) from error


def _try_update(solver: SolverRecipe) -> None:
    parameters = [nn.Parameter(torch.ones(shape)) for shape in ((2, 3, 2, 2), (2, 3), (3,))]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 0.5)
    groups = [{"params": [parameter], "lr": 0.1, "weight_decay": 0.1} for parameter in parameters]
    with torch.random.fork_rng(devices=[]):
        optimizer = create_optimizer(solver, groups, 0.1)
        try:
            optimizer.step()
        except Exception as error:  # as above
            raise _refused(solver, error) from error


def _refused(solver: SolverRecipe, error: Exception) -> InputError:
    key = "solver.optimizer_args" if solver.optimizer_args else "solver.optimizer"
    return InputError(
        f"{key}: {solver.optimizer} does not work with {solver.optimizer_args or 'gradients alone'} "
        f"({type(error).__name__}: {reason(error)}); see timm.optim.get_optimizer_class({solver.optimizer!r})"
    )
