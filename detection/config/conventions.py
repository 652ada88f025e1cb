"""The values of ``model.conventions``, and what detectors that follow them take as input."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ConventionName = Literal["torchvision", "legacy"]


@dataclass(frozen=True)
class ConventionFacts:
    """Input format and category handling of the detectors that follow a set of conventions."""

    channel_order: Literal["rgb", "bgr"]
    """Channel order of a three-channel image."""
    value_range: tuple[float, float]
    """Lowest and highest pixel value before the mean is subtracted."""
    category_names_checked: bool
    """True if category names of the detector and of the data must agree; False compares ids only."""


CONVENTIONS: dict[ConventionName, ConventionFacts] = {
    "torchvision": ConventionFacts(channel_order="rgb", value_range=(0, 1), category_names_checked=True),
    # maskrcnn-benchmark. A published file holds no category names: reference datasets/coco.py:59-64 counts ids.
    "legacy": ConventionFacts(channel_order="bgr", value_range=(0, 255), category_names_checked=False),
}
"""Facts about each value of ``model.conventions``."""
