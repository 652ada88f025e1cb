"""The epsilon of the batch norms that a backbone's weights are of, kept where frozen norms have another one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vovnet.errors import InputError


def norm_eps_of(detector: nn.Module) -> dict[str, float]:
    """Return the epsilon of each batch norm of the backbone, frozen or not, by the norm's name."""
    return {name: module.eps for name, module in _norms(detector).items()}


def frozen_norms(detector: nn.Module) -> dict[str, Any]:
    """Return the frozen batch norms of the backbone by name."""
    return {name: module for name, module in _norms(detector).items() if not isinstance(module, _BatchNorm)}


@contextmanager
def kept_norms(norms: Mapping[str, Any], eps: Mapping[str, float], name: str) -> Iterator[None]:
    """Make frozen norms compute what the norms of the weights computed, which the ``with`` block loads into them.

    Where the weights' norms have the larger epsilon, the difference is added to the variances. The opposite would
    cancel the digits of a variance that is almost nothing, so it is refused before the block.

    Args:
        norms: The frozen norms that receive the weights, by name.
        eps: The epsilon of the weights' norms by name; a norm that is not listed keeps what it gets.
        name: The name of the weights, for messages.

    Raises:
        InputError: A norm of the weights has a smaller epsilon than the frozen norm.
    """
    surplus = {key: eps[key] - module.eps for key, module in norms.items() if key in eps}
    if smaller := [key for key, difference in surplus.items() if difference < 0]:
        ours, theirs = norms[smaller[0]].eps, eps[smaller[0]]
        raise InputError(
            f"init: the norms that '{name}' was trained with have the epsilon {theirs}, and the frozen norms of this "
            f"recipe have {ours}, which computes something else; give model.norm_eps={theirs}"
        )
    yield
    for key, difference in surplus.items():
        if difference:
            norms[key].running_var += difference


def _norms(detector: nn.Module) -> dict[str, Any]:
    modules = detector.get_submodule("backbone.body").named_modules()
    return {name: module for name, module in modules if getattr(module, "running_var", None) is not None}
