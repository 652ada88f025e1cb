"""Epochs, fractions and durations, against values counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vovnet.detection.config.loading import load_recipe
from vovnet.detection.config.schema import LogRecipe, Recipe
from vovnet.detection.config.solver import SolverRecipe
from vovnet.detection.training.length import seconds_of, with_iterations
from vovnet.errors import InputError


def solver_of(images: int, **settings: Any) -> SolverRecipe:
    return with_iterations(Recipe(solver=SolverRecipe(**settings)), images).solver


def test_the_1x_schedule_of_coco_in_epochs_is_that_in_iterations() -> None:
    """12 epochs of 117,266 images in batches of 16, falling after 8 and 11 epochs."""
    solver = solver_of(117_266, epochs=12, steps=[8, 11])
    assert (solver.max_iterations, solver.steps) == (87_950, [58_633, 80_620])
    fractions = solver_of(117_266, epochs=12, steps=[8 / 12, 11 / 12])
    assert fractions.steps == pytest.approx(solver.steps, abs=1)


@given(images=st.integers(1, 10**6), epochs=st.floats(0.01, 1000), batch=st.integers(1, 512))
def test_a_run_has_its_epochs_and_no_iteration_more(images: int, epochs: float, batch: int) -> None:
    solver = solver_of(images, epochs=epochs, batch_size=batch, steps=[])
    seen = solver.max_iterations * batch
    assert seen >= images * epochs * (1 - 1e-9)
    assert solver.max_iterations == 1 or seen - batch < images * epochs
    assert solver.epochs is None


def test_fractions_work_without_epochs_and_iterations_stay() -> None:
    assert solver_of(7, max_iterations=200, steps=[0.5, 0.75]).steps == [100, 150]
    recipe = load_recipe("mask_rcnn_vovnet39_fpn")
    assert with_iterations(recipe, 7) is recipe


@pytest.mark.parametrize(
    "settings", [{"epochs": 12, "steps": [60_000]}, {"steps": [1.5]}, {"epochs": 2, "steps": [1, 2.5]}]
)
def test_steps_that_are_not_in_the_run_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^solver\.steps"):
        solver_of(100, **settings)


def test_evaluations_may_be_counted_in_epochs() -> None:
    log = with_iterations(Recipe(solver=SolverRecipe(batch_size=4), log=LogRecipe(evaluate_epochs=0.5)), 100).log
    assert (log.evaluate_every, log.evaluate_epochs) == (12, None)


@pytest.mark.parametrize(
    ("text", "seconds"), [("2h", 7200), ("90m", 5400), ("1h30m", 5400), ("300", 300), ("1.5d", 129_600), ("45s", 45)]
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1h", "h", "2 hours", "30m1h", "nan", "1e3"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--time-limit"):
        seconds_of(text)
