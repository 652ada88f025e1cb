"""The lines of ``metrics.jsonl``, one JSON object each: read them, and name the numbers of an evaluation in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vovnet.errors import InputError

MEASURED = ("seconds", "images_per_second", "memory")
"""Keys of a line that differ between two equal runs: how long the run has taken in seconds, the speed since the line
before, and the peak of memory in bytes."""


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a run's ``metrics.jsonl`` in order.

    Lines that are no such object are skipped: a last line that was only half written, or bytes that a failing disk
    put there.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    return [record for record in map(_record, lines) if record is not None]


def _record(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and type(record.get("iteration")) is int else None


def flat_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of an evaluation under their names in the metrics file.

    They are COCO's, ``box_ap``, ``box_ap50``, …, ``mask_ap``, …, ``keypoint_ap``, …, and with ``log.validation_losses``
    also ``val_loss`` and its parts.
    """
    kinds = {"bbox": "box", "segm": "mask", "keypoints": "keypoint"}
    losses = {f"val_{name}": float(value) for name, value in metrics.get("losses", {}).items()}
    return losses | {
        f"{kinds[kind]}_{name.lower()}": value
        for kind in kinds
        for name, value in metrics.get(kind, {}).items()
        if isinstance(value, int | float)
    }
