"""Read what a training run left in its folder: the recipe, the lines of the metrics file, the environment."""

from __future__ import annotations

import math
import os
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vovnet.detection.config.detectors import DETECTORS
from vovnet.detection.config.loading import load_recipe
from vovnet.detection.config.schema import Recipe
from vovnet.detection.training.environment_file import read_environment
from vovnet.detection.training.metrics_log import read_metrics
from vovnet.errors import InputError
from vovnet.folders.home import expand_home


@dataclass(frozen=True)
class RunRecord:
    """A run's folder, read."""

    folder: Path
    recipe: Recipe
    lines: Sequence[Mapping[str, Any]]
    """The objects of ``metrics.jsonl``."""
    environment: Mapping[str, Any]
    """The object of ``environment.json``; empty for runs of versions that wrote none."""

    @property
    def losses(self) -> list[Mapping[str, Any]]:
        """The lines of losses."""
        return [line for line in self.lines if _is_number(line.get("loss"))]

    @property
    def evaluations(self) -> list[Mapping[str, Any]]:
        """The lines of evaluations."""
        return [line for line in self.lines if _is_number(line.get("box_ap"))]

    @property
    def best(self) -> Mapping[str, Any] | None:
        """The line of the evaluation whose weights the run kept: the first with the best AP; None without any."""
        key = f"{DETECTORS[self.recipe.model.detector].kept_by}_ap"
        scored = [line for line in self.lines if _is_number(line.get(key))]
        return max(scored, key=lambda line: line[key], default=None)

    @property
    def iterations(self) -> int:
        """The last iteration that was logged."""
        return max((line["iteration"] for line in self.lines), default=0)

    @property
    def seconds(self) -> float | None:
        """How long the run took, with its evaluations; None if it was not written down."""
        return max(self._numbers("seconds"), default=None)

    @property
    def images_per_second(self) -> float | None:
        """The median of the speeds that were logged; None if none was."""
        speeds = list(self._numbers("images_per_second"))
        return statistics.median(speeds) if speeds else None

    @property
    def memory(self) -> int | None:
        """The peak of memory in bytes; None if it was not written down."""
        return max(map(int, self._numbers("memory")), default=None)

    @property
    def device(self) -> str | None:
        """The GPU's name, or the processor's; None if it was not written down."""
        name = self.environment.get("device_name") or self.environment.get("processor")
        return name if isinstance(name, str) else None

    @property
    def on_gpu(self) -> bool:
        """True if the run was trained on a GPU, so that its memory is what PyTorch allocated there."""
        return isinstance(self.environment.get("device_name"), str)

    def _numbers(self, key: str) -> Iterator[float]:
        return (line[key] for line in self.lines if _is_number(line.get(key)))


def read_run(folder: str | os.PathLike[str]) -> RunRecord:
    """Read a run's folder.

    Raises:
        InputError: there is no such folder, or it holds no run.
    """
    path = expand_home(os.fspath(folder))
    if not path.is_dir():
        raise InputError(f"'{folder}': there is no such folder; expected a run's, as `vovnet train` leaves one")
    for name in ("recipe.yaml", "metrics.jsonl"):
        if not (path / name).is_file():
            raise InputError(f"folder '{folder}' has no {name}; expected a run's folder, as `vovnet train` leaves one")
    return RunRecord(
        path,
        load_recipe(path / "recipe.yaml"),
        read_metrics(path / "metrics.jsonl"),
        read_environment(path / "environment.json"),
    )


def run_names(folders: Sequence[str | os.PathLike[str]]) -> list[str]:
    """Return a short name for each folder: the last part of its path, or as much of it as makes them differ."""
    paths = [Path(os.fspath(folder)) for folder in folders]
    depth = 1
    while True:
        names = ["/".join(path.parts[-depth:]) or str(path) for path in paths]
        if len(set(names)) == len(names) or depth >= max((len(path.parts) for path in paths), default=1):
            return names
        depth += 1


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
