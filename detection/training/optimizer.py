"""Build the optimizer, with its parameter groups, and the learning-rate schedule."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from vovnet.detection.config.schema import SolverRecipe


def scaled_learning_rate(solver: SolverRecipe) -> float:
    """Return the base learning rate, scaled linearly with the batch size (arXiv:1706.02677, section 2.1)."""
    return solver.base_lr * solver.batch_size / solver.reference_batch_size


def build_optimizer(model: nn.Module, solver: SolverRecipe) -> SGD:
    """Return SGD with momentum over every parameter that is trained, in up to three groups: weights, biases, norms."""
    weights: list[nn.Parameter] = []
    biases: list[nn.Parameter] = []
    norms: list[nn.Parameter] = []
    for module in model.modules():
        # A module whose weight is a vector is a norm; this holds for batch, group and layer norms of any class.
        weight = getattr(module, "weight", None)
        vector = isinstance(weight, nn.Parameter) and weight.dim() == 1
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.requires_grad:
                (norms if vector else biases if name == "bias" else weights).append(parameter)
    return build_sgd(solver, weights, biases, norms)


def build_sgd(
    solver: SolverRecipe,
    weights: Sequence[nn.Parameter],
    biases: Sequence[nn.Parameter],
    norms: Sequence[nn.Parameter] = (),
) -> SGD:
    """Return SGD over groups of parameters, each with its learning rate and weight decay; empty groups are left out."""
    lr, decay = scaled_learning_rate(solver), solver.weight_decay
    groups = [
        {"params": weights, "lr": lr, "weight_decay": decay},
        {
            "params": biases,
            "lr": lr * solver.bias_lr_factor,
            "weight_decay": decay if solver.bias_weight_decay is None else solver.bias_weight_decay,
        },
        {
            "params": norms,
            "lr": lr,
            "weight_decay": decay if solver.norm_weight_decay is None else solver.norm_weight_decay,
        },
    ]
    return SGD(
        [group for group in groups if group["params"]], lr=lr, momentum=solver.momentum, nesterov=solver.nesterov
    )


def learning_rate_factor(solver: SolverRecipe, iteration: int) -> float:
    """Return the factor of the scaled learning rate for the update after ``iteration`` finished ones.

    It is a linear warm-up from ``warmup_factor`` to 1 over ``warmup_iterations``, times either ``gamma`` for each step
    passed, or half a cosine from 1 to 0 over the run.
    """
    warmup = 1.0
    if iteration < solver.warmup_iterations:
        share = iteration / solver.warmup_iterations
        warmup = solver.warmup_factor * (1 - share) + share
    if solver.schedule == "cosine":
        return warmup * 0.5 * (1 + math.cos(math.pi * min(1.0, iteration / solver.max_iterations)))
    return warmup * solver.gamma ** bisect.bisect_right(solver.steps, iteration)


def build_schedule(optimizer: SGD, solver: SolverRecipe) -> LambdaLR:
    """Return the schedule as a torch scheduler, which is stepped once an iteration, after the update."""
    return LambdaLR(optimizer, lambda iteration: learning_rate_factor(solver, iteration))
