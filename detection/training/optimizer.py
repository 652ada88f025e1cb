"""Build the optimizer, with its parameter groups, and the learning-rate schedule."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR

from vovnet.adapters.layers import ParameterFacts
from vovnet.detection.config.solver import SolverRecipe
from vovnet.detection.training.timm_optimizer import create_optimizer

_WEIGHT, _BIAS, _NORM, _UNDECAYED = range(4)
"""Kinds of parameters, in the order of their groups."""


def scaled_learning_rate(solver: SolverRecipe) -> float:
    """Return the base learning rate, scaled linearly with the batch size (arXiv:1706.02677, section 2.1)."""
    return solver.base_lr * solver.batch_size / solver.reference_batch_size


def build_optimizer(model: nn.Module, solver: SolverRecipe, facts: ParameterFacts | None = None) -> Optimizer:
    """Return the optimizer over every parameter that is trained.

    Its groups are weights, biases, norms, and with another optimizer than SGD what timm does not let decay; each is
    divided by the factors of its learning rates, the largest first.

    Args:
        model: the detector. Its ``backbone.body`` is the timm network.
        solver: learning rates, weight decay and the optimizer's name.
        facts: what timm says about the network's parameters; needed for ``layer_decay`` and for tables of positions.

    Raises:
        InputError: ``solver.optimizer`` or ``solver.optimizer_args`` cannot be used.
    """
    groups: dict[tuple[int, float], list[nn.Parameter]] = {}
    for parameter, kind, factor in _parameters(model, solver, facts):
        groups.setdefault((kind, -factor), []).append(parameter)
    lr = scaled_learning_rate(solver)
    entries = [
        {
            "params": groups[kind, minus],
            "lr": lr * -minus * (solver.bias_lr_factor if kind == _BIAS else 1),
            "weight_decay": _weight_decay(solver, kind),
            # Of timm's optimizers, Muon alone reads it: it trains these by AdamW.
            **({"use_fallback": True} if kind == _UNDECAYED else {}),
        }
        for kind, minus in sorted(groups)
    ]
    if solver.optimizer != "sgd":
        return create_optimizer(solver, entries, lr)
    return SGD(entries, lr=lr, momentum=solver.momentum, nesterov=solver.nesterov)


def build_sgd(solver: SolverRecipe, weights: Sequence[nn.Parameter], biases: Sequence[nn.Parameter]) -> SGD:
    """Return SGD over two groups of parameters, each with its learning rate and weight decay; none is empty."""
    lr = scaled_learning_rate(solver)
    groups = [
        {"params": weights, "lr": lr, "weight_decay": solver.weight_decay},
        {
            "params": biases,
            "lr": lr * solver.bias_lr_factor,
            "weight_decay": solver.weight_decay if solver.bias_weight_decay is None else solver.bias_weight_decay,
        },
    ]
    return SGD(
        [group for group in groups if group["params"]], lr=lr, momentum=solver.momentum, nesterov=solver.nesterov
    )


class _Placed(NamedTuple):
    """A parameter with its kind, and the factor of its learning rate by its place in the network."""

    parameter: nn.Parameter
    kind: int
    factor: float


def _parameters(model: nn.Module, solver: SolverRecipe, facts: ParameterFacts | None) -> Iterator[_Placed]:
    body = getattr(getattr(model, "backbone", None), "body", None)
    names = {} if body is None else {parameter: name for name, parameter in body.named_parameters()}
    for module in model.modules():
        # A module whose weight is a vector is a norm; this holds for batch, group and layer norms of any class.
        weight = getattr(module, "weight", None)
        vector = isinstance(weight, nn.Parameter) and weight.dim() == 1
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            own = names.get(parameter)
            kind = _NORM if vector else _BIAS if name == "bias" else _WEIGHT
            if kind == _WEIGHT and solver.optimizer != "sgd" and _is_undecayed(parameter, own, facts):
                kind = _UNDECAYED
            yield _Placed(parameter, kind, 1.0 if own is None else _factor(own, solver, facts))


def _is_undecayed(parameter: nn.Parameter, name: str | None, facts: ParameterFacts | None) -> bool:
    """True for vectors and scalars, such as the scales of layers, and what the timm model names."""
    return parameter.dim() <= 1 or (facts is not None and name in facts.undecayed)


def _factor(name: str, solver: SolverRecipe, facts: ParameterFacts | None) -> float:
    if solver.layer_decay is None or facts is None:
        return solver.backbone_lr_factor
    return solver.backbone_lr_factor * float(solver.layer_decay ** (facts.top - facts.layers[name]))


def _weight_decay(solver: SolverRecipe, kind: int) -> float:
    if kind == _WEIGHT:
        return solver.weight_decay
    own = {_BIAS: solver.bias_weight_decay, _NORM: solver.norm_weight_decay}.get(kind)
    if own is not None:
        return own
    return solver.weight_decay if solver.optimizer == "sgd" else 0.0


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


def build_schedule(optimizer: Optimizer, solver: SolverRecipe) -> LambdaLR:
    """Return the schedule as a torch scheduler, which is stepped once an iteration, after the update."""
    return LambdaLR(optimizer, lambda iteration: learning_rate_factor(solver, iteration))
