"""What a page of the demo offers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vovnet.detection.demo.bounds import Bounds
from vovnet.errors import InputError
from vovnet.results.writing import FileDetector


@dataclass(frozen=True)
class Content:
    """What a page offers."""

    title: str
    detectors: Mapping[str, FileDetector]
    examples: Sequence[tuple[str, bytes]] = ()
    """The name and the content of each."""
    bounds: Bounds = field(default_factory=Bounds)
    threshold: float = 0.5
    """Where the slider stands at first."""

    def __post_init__(self) -> None:
        if not self.detectors:
            raise InputError("--weights: expected at least one detector")
        if not 0 <= self.threshold <= 1:
            raise InputError(f"--threshold: expected a number from 0 to 1, got {self.threshold}")
        for name, one in self.detectors.items():
            if one.channels not in (1, 3):
                raise InputError(f"{name}: takes {one.channels} channels, and a demo's images have 1 (grey) or 3 (RGB)")
