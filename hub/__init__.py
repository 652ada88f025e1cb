"""Detectors by name, from a folder or from the Hugging Face Hub, and published checkpoints turned into folders.

The functions are imported when they are first used, so that ``import vovnet.hub`` does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vovnet.detection.checkpoints.folder import load_detector
    from vovnet.hub.convert import convert_checkpoint
    from vovnet.hub.publishing import publish
    from vovnet.hub.verification import verify

__all__ = ["convert_checkpoint", "load_detector", "publish", "verify"]

_HOMES = {
    "convert_checkpoint": "vovnet.hub.convert",
    "load_detector": "vovnet.detection.checkpoints.folder",
    "publish": "vovnet.hub.publishing",
    "verify": "vovnet.hub.verification",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'vovnet.hub' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
