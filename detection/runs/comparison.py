"""Compare runs: the recipe's differences, AP, time and memory side by side, as a table and as data."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vovnet.detection.config.loading import flat_recipe
from vovnet.detection.config.parts import shown
from vovnet.detection.evaluation.coco_eval import percent
from vovnet.detection.runs.reading import RunRecord, read_run, run_names
from vovnet.terminal.text import padded, printable, shortened, width_of

ABSENT = "-"
"""What a table shows where a run has no number."""
_WIDEST = 40
_NOT_COMPARED = ("log.",)  # they do not change what is learnt


@dataclass(frozen=True)
class Comparison:
    """Runs side by side.

    Attributes:
        names: a short name for each run.
        runs: the runs in the same order.
        differences: each key of the recipe in which they differ → its value in each run, None also where it is null.
    """

    names: list[str]
    runs: list[RunRecord]
    differences: dict[str, list[Any]]

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as data: AP in 0..1, seconds and bytes; null where a run has no number."""
        runs = [
            {"name": name, "folder": str(run.folder), **facts(run)}
            for name, run in zip(self.names, self.runs, strict=True)
        ]
        return {"runs": runs, "differences": self.differences}

    def table(self) -> str:
        """Return a table for a terminal: a column for each run, results above, the recipe's differences below."""
        found = [facts(run) for run in self.runs]
        rows = [["", *map(printable, self.names)]]
        for title, key, text in _ROWS:
            values = [_value(one, key) for one in found]
            if any(value is not None for value in values):
                rows.append([title, *(ABSENT if value is None else text(value) for value in values)])
        rows += [[key, *map(_setting, values)] for key, values in self.differences.items()]
        cells = [[shortened(cell, _WIDEST) for cell in row] for row in rows]
        widths = [max(width_of(row[column]) for row in cells) for column in range(len(cells[0]))]
        lines = ["  ".join(map(padded, row, widths)).rstrip() for row in cells]
        same = [] if self.differences or len(self.runs) < 2 else ["the recipes are the same"]
        return "\n".join([*lines, *same])


def compare_runs(folders: Sequence[str | os.PathLike[str]]) -> Comparison:
    """Read runs and compare them.

    Args:
        folders: the runs' folders.

    Raises:
        InputError: a folder holds no run.
    """
    runs = [read_run(folder) for folder in folders]
    recipes = [flat_recipe(run.recipe) for run in runs]
    keys = dict.fromkeys(key for recipe in recipes for key in recipe if not key.startswith(_NOT_COMPARED))
    rows = {key: [recipe.get(key) for recipe in recipes] for key in keys}
    differences = {key: values for key, values in rows.items() if any(value != values[0] for value in values)}
    return Comparison(run_names([run.folder for run in runs]), runs, differences)


def facts(run: RunRecord) -> dict[str, Any]:
    """Return what a run reached and took: its best evaluation, the last loss, time, speed, memory, device."""
    best = run.best or {}
    scores = {key: value for key, value in best.items() if key.startswith(("box_", "mask_", "keypoint_"))}
    return {
        "iterations": run.iterations,
        "planned_iterations": run.recipe.solver.max_iterations,
        "best_iteration": best.get("iteration"),
        "best": scores or None,
        "loss": run.losses[-1]["loss"] if run.losses else None,
        "seconds": run.seconds,
        "images_per_second": run.images_per_second,
        "memory": run.memory,
        "device": run.device,
    }


def duration(seconds: float) -> str:
    """Return a time as hours, minutes and seconds: ``1:02:03``."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"


_ROWS: tuple[tuple[str, str, Callable[[Any], str]], ...] = (
    *(
        (f"{kind} {title}", f"best.{kind}_{title.lower()}", percent)
        for kind in ("box", "mask", "keypoint")
        for title in ("AP", "AP50", "AP75")
    ),
    ("at iteration", "best_iteration", str),
    ("iterations", "iterations", str),
    ("last loss", "loss", lambda loss: f"{loss:.3f}"),
    ("time", "seconds", duration),
    ("images/s", "images_per_second", lambda speed: f"{speed:.2f}"),
    ("memory, GiB", "memory", lambda size: f"{size / 2**30:.2f}"),
    ("device", "device", printable),
)
"""Title, key in :func:`facts`, and how a value is written."""


def _value(found: Mapping[str, Any], key: str) -> Any:
    part, _, name = key.partition(".")
    value = found.get(part)
    return (value or {}).get(name) if name else value


def _setting(value: Any) -> str:
    return printable(value if isinstance(value, str) else shown(value))
