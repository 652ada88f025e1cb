"""faster-coco-eval gives pycocotools' numbers on everything that is evaluated here, and is asked for by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import detection_cases
import evaluation_cases
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import command
from tiny_runs import Squares, assert_same_runs, short_recipe

from vovnet.detection.analysis.explaining import analyse
from vovnet.detection.config.fields import Backend
from vovnet.detection.evaluation import backends
from vovnet.detection.evaluation.backends import precision_of, run_coco_eval
from vovnet.detection.evaluation.evaluator import evaluate
from vovnet.detection.evaluation.truth import IouType, coco_ground_truth
from vovnet.detection.training.engine import train
from vovnet.errors import InputError

needs_faster = pytest.mark.skipif(
    backends.absent_package("faster_coco_eval") is not None, reason="faster-coco-eval is an extra"
)


def run(backend: Backend, truth: dict[str, Any], results: list[dict[str, Any]], kind: IouType, most: int = 100) -> Any:
    sigmas = [0.05] * evaluation_cases.POINTS if kind == "keypoints" else []
    complete = coco_ground_truth(truth, kind, len(sigmas))
    return run_coco_eval(complete, [dict(one) for one in results], kind, sorted(complete.imgs), sigmas, most, backend)


def assert_same(ours: Any, theirs: Any) -> None:
    np.testing.assert_allclose(ours.stats, theirs.stats, rtol=0, atol=1e-12)
    np.testing.assert_allclose(precision_of(ours), precision_of(theirs), rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.eval["recall"], theirs.eval["recall"], rtol=0, atol=1e-12)


@needs_faster
@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
@given(seed=st.integers(0, 2**31), images=st.integers(1, 6))
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_numbers_are_the_same(kind: IouType, seed: int, images: int) -> None:
    truth, results = evaluation_cases.random_case(seed, images, kind)
    assert_same(run("faster", truth, results, kind), run("pycocotools", truth, results, kind))


@needs_faster
@pytest.mark.parametrize("ties", [False, True])
def test_what_an_analysis_reads_is_the_same(ties: bool) -> None:
    truth, results = detection_cases.errors_of_all_kinds(3, ties=ties)
    ours, theirs = (run(backend, truth, results, "bbox", most=300) for backend in backends.BACKENDS)
    assert_same(ours, theirs)
    one, other = analyse(ours), analyse(theirs)
    assert (one.numbers(), one.class_numbers()) == (other.numbers(), other.class_numbers())
    assert one.confusion.tolist() == other.confusion.tolist()


@needs_faster
def test_an_evaluation_and_a_training_take_it(tmp_path: Path) -> None:
    recipe = short_recipe(evaluate_every=2)
    runs: dict[str, Path] = {}
    for backend in backends.BACKENDS:
        recipe.log.evaluate_backend = backend
        runs[backend] = tmp_path / backend
        train(recipe, runs[backend], train_dataset=Squares(), val_dataset=Squares(), progress=False)
    lines = [[json.loads(line) for line in (one / "metrics.jsonl").read_text().splitlines()] for one in runs.values()]
    for one, other in zip(*lines, strict=True):
        for key in (key for key in one if key.startswith("box_ap")):
            assert one[key] == pytest.approx(other[key], abs=1e-12)
    recipe.log.evaluate_backend = "faster"
    again = tmp_path / "again"
    recipe.solver.max_iterations = 2
    train(recipe, again, train_dataset=Squares(), val_dataset=Squares(), progress=False)
    recipe.solver.max_iterations = 3
    train(recipe, again, train_dataset=Squares(), val_dataset=Squares(), progress=False, resume=True)
    assert_same_runs(again, runs["faster"])


def test_an_unknown_or_missing_one_is_one_line_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong: Any = "slower"
    with pytest.raises(InputError, match="backend"):
        evaluate(evaluation_cases.Nothing(), Squares(), backend=wrong)
    common = ["evaluate", tmp_path, "--weights", tmp_path / "weights", "--output", tmp_path / "out"]
    command(*common, "--backend", wrong).refused("--backend", "faster")
    monkeypatch.setattr(backends, "absent_package", lambda *_: "faster_coco_eval")
    command(*common, "--backend", "faster").refused("faster-coco-eval", "pip install")
    recipe = short_recipe()
    recipe.log.evaluate_backend = "faster"
    with pytest.raises(InputError, match=r"log\.evaluate_backend"):
        train(recipe, tmp_path / "run", train_dataset=Squares(), val_dataset=Squares(), progress=False)
    assert list(tmp_path.iterdir()) == []
