"""The depth of each parameter of a backbone, and which parameters get no weight decay, as timm defines both.

timm's feature extractors do not say it themselves, so the classifier that they are taken from is built without memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any, cast

import timm
import torch
from timm.models import group_parameters
from torch import nn

from vovnet.errors import InputError, reason

_OF_WEIGHTS = ("checkpoint_path", "pretrained_cfg_overlay", "device")
"""Arguments of a timm model that change its weights or their place, but not its parameters."""


@dataclass(frozen=True)
class ParameterFacts:
    """Facts about the parameters of a feature extractor, by their names in it."""

    layers: Mapping[str, int]
    """The layer of each parameter, counted from 0 at the stem by the model's ``group_matcher``; empty if it has none.
    What the classifier does not have is in the top layer."""
    top: int
    """The layer of the classifier's head, to which a detector's own parts correspond."""
    undecayed: frozenset[str]
    """Parameters that the model's ``no_weight_decay`` names, such as tables of positions."""


def parameter_facts(body: nn.Module, name: str, backbone_args: Mapping[str, Any]) -> ParameterFacts:
    """Return what timm says about the parameters of a feature extractor.

    Args:
        body: a feature extractor of timm, made with ``features_only``.
        name: the name of its timm model.
        backbone_args: the arguments that it was made with; those that only choose feature maps are not among them.

    Raises:
        InputError: the classifier cannot be built with these arguments.
    """
    args = {key: value for key, value in backbone_args.items() if key not in _OF_WEIGHTS}
    try:
        with torch.device("meta"):
            whole: Any = timm.create_model(name, pretrained=False, **args)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"backbone_args: timm's classifier {name!r}, which says how its parameters are trained, cannot be built "
            f"with them ({reason(error)}); leave them out, or train by sgd without solver.layer_decay"
        ) from error
    originals = _original_names(body, [parameter for parameter, _ in whole.named_parameters()])
    layers: dict[str, int] = {}
    top = 0
    if hasattr(whole, "group_matcher"):
        grouped = group_parameters(whole, whole.group_matcher(coarse=False), reverse=True)
        found = cast("Mapping[str, int]", grouped)  # reverse=True makes it parameter → layer
        top = max(found.values())
        layers = {own: top if original is None else found[original] for own, original in originals.items()}
    patterns: Iterable[str] = whole.no_weight_decay() if hasattr(whole, "no_weight_decay") else ()
    undecayed = {
        own for own, original in originals.items() if original and any(fnmatch(original, entry) for entry in patterns)
    }
    return ParameterFacts(layers, top, frozenset(undecayed))


def _original_names(body: nn.Module, whole: Iterable[str]) -> dict[str, str | None]:
    """Return the classifier's name of each parameter of an extractor, or None for a parameter that it does not have.

    timm's extractors keep a name, flatten its first two parts (``stages.0`` → ``stages_0``), or wrap the model.
    """
    known = {name: name for name in whole}
    known |= {name.replace(".", "_", 1): name for name in known}
    names = {}
    for own, _ in body.named_parameters():
        head, _, rest = own.partition(".")
        names[own] = known.get(own) or (known.get(rest) if head in ("model", "body") else None)
    return names
