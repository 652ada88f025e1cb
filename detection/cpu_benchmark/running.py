"""Run a case: build its network, check every backend's answer, and time the backends."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vovnet.detection.cpu_benchmark.backends import BACKENDS
from vovnet.detection.cpu_benchmark.cases import CASES, Case, build_network, exact_maps, make_images
from vovnet.detection.cpu_benchmark.task import Runner, Task, UnavailableError
from vovnet.errors import InputError
from vovnet.folders.temporary import scratch_folder
from vovnet.results.comparison import Agreement, agreement
from vovnet.timing.rounds import Speedup, speedup, time_calls


@dataclass(frozen=True)
class Result:
    """The measurements of one backend.

    Attributes:
        seconds: seconds per call, one per round.
        errors: for a backbone, the rms of each map's difference from float64.
        agreement: for a detector, how far its detections are from the eager detector's in float32.
    """

    seconds: list[float]
    errors: list[float] | None = None
    agreement: Agreement | None = None

    @property
    def median(self) -> float:
        """Median of :attr:`seconds`."""
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Outcome:
    """The measurements of a case.

    Attributes:
        case: the case.
        results: name of the backend → what was measured for it.
        eager_errors: for a backbone, :attr:`Result.errors` of eager PyTorch in the case's precision.
        absent: name of the backend → why it did not take part.
    """

    case: Case
    results: dict[str, Result]
    eager_errors: list[float] | None
    absent: dict[str, str]

    @property
    def ours(self) -> Result | None:
        """The result of ``vovnet.fuse``, or None."""
        return next((result for name, result in self.results.items() if BACKENDS[name].ours), None)

    @property
    def best_peer(self) -> str | None:
        """The name of the other backend with the smallest median, or None."""
        peers = {name: result.median for name, result in self.results.items() if not BACKENDS[name].ours}
        return min(peers, key=peers.__getitem__, default=None)

    @property
    def speedup(self) -> Speedup | None:
        """The speedup of ``vovnet.fuse`` over :attr:`best_peer`, or None if one of them is absent."""
        ours, peer = self.ours, self.best_peer
        return None if ours is None or peer is None else speedup(ours.seconds, self.results[peer].seconds)


def run_cases(
    cases: Sequence[str], backends: Sequence[str], rounds: int, progress: Callable[[str], None]
) -> Iterable[Outcome]:
    """Measure cases one after the other.

    Args:
        cases: names of :data:`CASES`; empty means all.
        backends: names of :data:`BACKENDS`; empty means all.
        rounds: number of rounds that are measured.
        progress: called with a text before each step.

    Raises:
        InputError: an unknown name.
    """
    chosen = [CASES[name] for name in _known("--case", cases, list(CASES))]
    names = _known("--backend", backends, list(BACKENDS))
    return (run_case(case, names, rounds, progress) for case in chosen)


def _known(option: str, given: Sequence[str], known: Sequence[str]) -> list[str]:
    for name in given:
        if name not in known:
            raise InputError(f"{option} {name}: expected one of {', '.join(known)}")
    return [name for name in known if name in given or not given]


@torch.inference_mode()
def run_case(case: Case, backends: Sequence[str], rounds: int, progress: Callable[[str], None]) -> Outcome:
    """Prepare the backends that can take part, check their answers, and time them."""
    model, images = build_network(case), make_images(case)
    runs: dict[str, Runner] = {}
    judged: dict[str, dict[str, Any]] = {}
    absent: dict[str, str] = {}
    with scratch_folder() as folder:
        task = Task(case, model, images, folder)
        progress(f"{case.name}: eager PyTorch and the exact answer")
        # Detections are compared with float32's; a backbone's errors with eager PyTorch's in the same precision.
        reference = replace(task, case=replace(case, precision="fp32")) if case.detector else task
        eager = BACKENDS["eager"].set_up(reference)()
        judge = _judge(task, eager)
        for name in backends:
            backend = BACKENDS[name]
            progress(f"{case.name}: preparing {backend.title}")
            try:
                runs[name] = backend.set_up(task)
            except UnavailableError as error:
                absent[name] = str(error)
                continue
            judged[name] = judge(runs[name]())
        progress(f"{case.name}: {rounds} rounds of {len(runs)} backends")
        seconds = time_calls(runs, rounds)
    results = {name: Result(seconds[name], **judged[name]) for name in runs}
    return Outcome(case, results, judge(eager).get("errors"), absent)


def _judge(task: Task, eager: Any) -> Callable[[Any], dict[str, Any]]:
    """Return a function from an answer to the fields of :class:`Result` that describe its accuracy."""
    if task.case.detector:
        return lambda answer: {"agreement": agreement(_float_scores(answer[0]), eager[0])}
    truth = exact_maps(task.model, task.images)
    return lambda maps: {"errors": [_rms(x, exact) for x, exact in zip(maps, truth, strict=True)]}


def _float_scores(detections: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Autocast leaves scores in bfloat16, which NumPy does not know."""
    return {name: x.float() if x.dtype == torch.bfloat16 else x for name, x in detections.items()}


def _rms(x: Tensor, exact: Tensor) -> float:
    return float((x.double() - exact).square().mean().sqrt())
