"""What the tests of other people's programs share: a small model, and the types of their fixtures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import timm
from torch import nn

import vovnet  # noqa: F401 (registers the name)

Sources = Callable[[str], Path]
Script = Callable[..., str]


def small(**arguments: object) -> nn.Module:
    """Return VoVNet-27-slim with random weights, as a classifier of two classes."""
    model: nn.Module = timm.create_model("vovnet27_slim", **{"num_classes": 2, **arguments})
    return model
