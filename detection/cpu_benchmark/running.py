"""A case from its network to its numbers."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vovnet.detection.cpu_benchmark.backends import CONTESTANTS, Run, Task, UnavailableError
from vovnet.detection.cpu_benchmark.cases import CASES, Case, build_network, exact_maps, make_images
from vovnet.detection.cpu_benchmark.timing import Speedup, speedup, take_turns
from vovnet.errors import InputError

SAME_BOX = 5.0
"""Pixels that coordinates of detections that belong together may differ by."""


@dataclass(frozen=True)
class Agreement:
    """How far a detector's answers lie from the eager detector's.

    Attributes:
        count: detections.
        eager_count: of the eager detector.
        unmatched: of either, without a counterpart of their class.
        box_distance: the largest of a coordinate, in pixels, between detections that belong together.
        score_distance: the largest of their scores.
    """

    count: int
    eager_count: int
    unmatched: int
    box_distance: float
    score_distance: float


@dataclass(frozen=True)
class Result:
    """What was measured of one contestant.

    Attributes:
        seconds: of a call, one a round.
        errors: of a backbone: rms of the difference from float64, a map.
        agreement: of a detector.
    """

    seconds: list[float]
    errors: list[float] | None = None
    agreement: Agreement | None = None

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Outcome:
    """What was measured of a case.

    Attributes:
        case: which it was.
        results: by contestant, in their order.
        eager_errors: of a backbone: rms of eager PyTorch's difference from float64 in the case's precision, a map.
        absent: contestant → why it did not take part.
    """

    case: Case
    results: dict[str, Result]
    eager_errors: list[float] | None
    absent: dict[str, str]

    @property
    def ours(self) -> Result | None:
        """Of ``vovnet.fuse``."""
        return next((result for name, result in self.results.items() if CONTESTANTS[name].ours), None)

    @property
    def best_peer(self) -> str | None:
        """The contestant of the others with the smallest median."""
        peers = {name: result.median for name, result in self.results.items() if not CONTESTANTS[name].ours}
        return min(peers, key=peers.__getitem__, default=None)

    @property
    def speedup(self) -> Speedup | None:
        """Of ``vovnet.fuse`` over the best of the others; None where one of them is absent."""
        ours, peer = self.ours, self.best_peer
        return None if ours is None or peer is None else speedup(ours.seconds, self.results[peer].seconds)


def run_cases(
    cases: Sequence[str], contestants: Sequence[str], rounds: int, progress: Callable[[str], None]
) -> Iterable[Outcome]:
    """Measure cases one after the other.

    Args:
        cases: names of :data:`CASES`; none means all.
        contestants: names of :data:`CONTESTANTS`; none means all.
        rounds: that count.
        progress: is told what is being done.

    Raises:
        InputError: an unknown name.
    """
    chosen = [CASES[name] for name in _known("--case", cases, list(CASES))]
    names = _known("--contestant", contestants, list(CONTESTANTS))
    return (run_case(case, names, rounds, progress) for case in chosen)


def _known(option: str, given: Sequence[str], known: Sequence[str]) -> list[str]:
    for name in given:
        if name not in known:
            raise InputError(f"{option} {name}: expected one of {', '.join(known)}")
    return [name for name in known if name in given or not given]


@torch.inference_mode()
def run_case(case: Case, contestants: Sequence[str], rounds: int, progress: Callable[[str], None]) -> Outcome:
    """Prepare the contestants that can take part, hold their answers to the truth, and time them."""
    model, images = build_network(case), make_images(case)
    runs: dict[str, Run] = {}
    judged: dict[str, dict[str, Any]] = {}
    absent: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        task = Task(case, model, images, Path(folder))
        progress(f"{case.name}: eager PyTorch and the exact answer")
        eager = CONTESTANTS["eager"].set_up(task)()
        judge = _judge(task, eager)
        for name in contestants:
            contestant = CONTESTANTS[name]
            progress(f"{case.name}: preparing {contestant.title}")
            try:
                runs[name] = contestant.set_up(task)
            except UnavailableError as error:
                absent[name] = str(error)
                continue
            judged[name] = judge(runs[name]())
        progress(f"{case.name}: {rounds} rounds of {len(runs)} contestants")
        seconds = take_turns(runs, rounds)
    results = {name: Result(seconds[name], **judged[name]) for name in runs}
    return Outcome(case, results, judge(eager).get("errors"), absent)


def _judge(task: Task, eager: Any) -> Callable[[Any], dict[str, Any]]:
    """A function from an answer to the fields of :class:`Result` that say how good it is."""
    if task.case.detector:
        return lambda answer: {"agreement": agreement(answer[0], eager[0])}
    truth = exact_maps(task.model, task.images)
    return lambda maps: {"errors": [_rms(x, exact) for x, exact in zip(maps, truth, strict=True)]}


def _rms(x: Tensor, exact: Tensor) -> float:
    return float((x.double() - exact).square().mean().sqrt())


def agreement(detections: Mapping[str, Tensor], eager: Mapping[str, Tensor]) -> Agreement:
    """Compare an image's detections (``boxes`` (D, 4) in pixels, ``labels`` (D,), ``scores`` (D,)).

    Each of the eager detector's belongs to the nearest of its class that no other has, within :data:`SAME_BOX`.
    """
    free = torch.ones(len(detections["labels"]), dtype=torch.bool)
    box_distance = score_distance = 0.0
    for box, label, score in zip(eager["boxes"], eager["labels"], eager["scores"], strict=True):
        distances = (detections["boxes"] - box).abs().amax(1)
        distances[~free | (detections["labels"] != label)] = torch.inf
        if not len(distances) or distances.min() > SAME_BOX:
            continue  # at the threshold, or of two that suppress each other, another one was taken
        nearest = int(distances.argmin())
        free[nearest] = False
        box_distance = max(box_distance, float(distances[nearest]))
        score_distance = max(score_distance, float((detections["scores"][nearest] - score).abs()))
    unmatched = int(free.sum()) + max(0, len(eager["labels"]) - int((~free).sum()))
    return Agreement(len(free), len(eager["labels"]), unmatched, box_distance, score_distance)
