"""The lines of ``metrics.jsonl``, one JSON object each: read them, and name the numbers of an evaluation in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vovnet.errors import InputError


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a run's ``metrics.jsonl`` in order.

    Lines that are no such object are skipped, for example a last line that was only half written.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("iteration"), int):
            records.append(record)
    return records


def flat_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return COCO's numbers under their names in the metrics file: ``box_ap``, ``box_ap50``, …, ``mask_ap``, …"""
    kinds = {"bbox": "box", "segm": "mask"}
    return {
        f"{kinds[kind]}_{name.lower()}": value
        for kind in kinds
        for name, value in metrics.get(kind, {}).items()
        if isinstance(value, int | float)
    }


def iteration_of(line: str) -> float:
    """Return the iteration of a line, or infinity if the line is incomplete because the run was killed."""
    try:
        return float(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
