"""The lowest scores of detections that are drawn and counted."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, TypeAlias

from vovnet.errors import InputError, reason, shown
from vovnet.folders.home import expand_home

Threshold: TypeAlias = float | Mapping[str, float]
"""A score in 0..1 for all categories, or one for each by the category's name; without one it is :data:`USUAL`."""

USUAL = 0.5


@dataclass(frozen=True)
class Thresholds:
    """A checked :data:`Threshold`.

    Raises:
        InputError: a number is not in 0..1; or a name is none of ``categories``.
    """

    of_all: float = USUAL
    by_name: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, threshold: Threshold, categories: Sequence[Mapping[str, Any]] | None = None) -> Thresholds:
        """Check a threshold; ``categories``, in COCO's form, are those that a name must be one of."""
        by_name = threshold if isinstance(threshold, Mapping) else {}
        for name, value in [("", threshold)] if not isinstance(threshold, Mapping) else threshold.items():
            if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value <= 1:
                where = f" for '{name}'" if name else ""
                raise InputError(f"threshold: expected a number from 0 to 1{where}, got {shown(value)}")
        if categories is not None and (unknown := set(by_name) - {str(one["name"]) for one in categories}):
            known = ", ".join(str(one["name"]) for one in categories[:10])
            raise InputError(f"threshold: '{min(unknown)}' is no category of the detector, which has {known}")
        return cls(USUAL, dict(by_name)) if isinstance(threshold, Mapping) else cls(float(threshold))

    def of_category(self, name: str) -> float:
        """Return the threshold of a category."""
        return self.by_name.get(name, self.of_all)

    def passed(self, detections: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return those of some detections, with ``category`` and ``score``, whose score is at least the threshold."""
        return [one for one in detections if one["score"] >= self.of_category(str(one.get("category", "")))]

    def __str__(self) -> str:
        values = sorted(set(self.by_name.values()))
        if not values:
            return f"{self.of_all:g}"
        return f"{values[0]:g}" if len(values) == 1 else f"{values[0]:g}..{values[-1]:g}"


def threshold_argument(text: str) -> Threshold:
    """Return a threshold from a text: a number, or what :func:`thresholds_for_counts` takes.

    Raises:
        InputError: it is neither.
    """
    try:
        number = float(text)
    except ValueError:
        return thresholds_for_counts(text)
    return Thresholds.of(number).of_all


def thresholds_for_counts(evaluation: str | os.PathLike[str]) -> dict[str, float]:
    """Return for each category the score threshold whose counts were right on the whole, from an evaluation's results.

    Args:
        evaluation: the folder that ``vovnet evaluate`` wrote, or its ``metrics.json``.

    Raises:
        InputError: there is no such file, or it has no thresholds.
    """
    path = expand_home(evaluation)
    path = path / "metrics.json" if path.is_dir() else path
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
        tables = metrics["per_class"]
        table = next(tables[kind] for kind in ("bbox", "segm", "keypoints") if kind in tables)
        found = {str(one["name"]): float(one["count_threshold"]) for one in table}
    except (OSError, ValueError) as error:
        raise InputError(
            f"threshold: expected a number from 0 to 1, or the output folder of 'vovnet evaluate', got "
            f"'{evaluation}' ({reason(error)})"
        ) from None
    except (KeyError, TypeError, AttributeError, StopIteration):
        raise InputError(
            f"threshold: '{path}' has no thresholds for counts; evaluate again with this version"
        ) from None
    return found
