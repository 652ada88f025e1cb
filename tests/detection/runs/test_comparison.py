"""Runs side by side: what differs is shown, what is absent is a dash, and the chart is drawn whatever is missing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support import command

from vovnet.detection.config.loading import recipe_to_yaml
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.config.schema import Recipe
from vovnet.detection.config.solver import SolverRecipe
from vovnet.detection.runs.chart import COLOURS, draw_comparison
from vovnet.detection.runs.comparison import compare_runs, duration
from vovnet.detection.runs.reading import read_run, run_names
from vovnet.errors import InputError

LINES: list[dict[str, Any]] = [
    {"iteration": 10, "loss": 2.0, "lr": 0.1, "seconds": 5.0, "images_per_second": 4.0, "memory": 2**30},
    {"iteration": 10, "box_ap": 0.2, "box_ap50": 0.5, "box_apl": -1.0, "seconds": 8.0},
    {"iteration": 20, "loss": 1.5, "lr": 0.1, "seconds": 12.0, "images_per_second": 6.0, "memory": 3 * 2**30},
    {"iteration": 20, "box_ap": 0.4, "box_ap50": 0.7, "box_apl": -1.0, "seconds": 16.0},
    {"iteration": 30, "loss": 1.0, "lr": 0.1, "seconds": 3723.4, "images_per_second": 5.0, "memory": 2 * 2**30},
    {"iteration": 30, "box_ap": 0.4, "box_ap50": 0.6, "box_apl": -1.0, "seconds": 3723.4},
]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    def run(name: str, lines: list[dict[str, Any]] = LINES, *, model: Any = None, **solver: Any) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        recipe = Recipe(model=ModelRecipe(**(model or {})), solver=SolverRecipe(**solver))
        (folder / "recipe.yaml").write_text(recipe_to_yaml(recipe))
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (folder / "environment.json").write_text(json.dumps({"device_name": None, "processor": "a processor"}))
        return folder

    return run


def cells(table: str) -> dict[str, list[str]]:
    """The rows of a table by their titles; columns are two spaces apart."""
    rows = [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in table.splitlines()]
    return {row[0]: row[1:] for row in rows[1:]}


def test_a_run_is_read(make: Callable[..., Path]) -> None:
    run = read_run(make("a"))
    assert run.best is not None
    assert run.best["iteration"] == 20, "the first of equal ones is kept"
    assert (run.iterations, run.seconds, run.images_per_second, run.memory) == (30, 3723.4, 5.0, 3 * 2**30)
    assert (run.device, run.on_gpu) == ("a processor", False)


def test_what_differs_is_shown_side_by_side(make: Callable[..., Path]) -> None:
    comparison = compare_runs([make("a", base_lr=0.02), make("b", LINES[:2], base_lr=0.01, ema=0.9)])
    table = cells(comparison.table())
    assert table["box AP"] == ["40.0", "20.0"]
    assert table["box AP50"] == ["70.0", "50.0"]
    assert table["at iteration"] == ["20", "10"]
    assert table["time"] == ["1:02:03", "0:00:08"]
    assert table["memory, GiB"] == ["3.00", "1.00"]
    assert table["solver.base_lr"] == ["0.02", "0.01"]
    assert table["solver.ema"] == ["null", "0.9"]
    assert not [key for key in table if key.startswith(("model.", "data.", "solver.batch_size", "mask"))]
    assert comparison.differences == {"solver.base_lr": [0.02, 0.01], "solver.ema": [None, 0.9]}


def test_another_detector_is_judged_by_its_own_ap(make: Callable[..., Path]) -> None:
    masks = [{**line, "mask_ap": 0.3 if line["iteration"] == 10 else 0.1} for line in LINES if "box_ap" in line]
    comparison = compare_runs([make("a"), make("b", masks, model={"detector": "mask_rcnn"})])
    table = cells(comparison.table())
    assert table["at iteration"] == ["20", "10"]
    assert table["mask AP"] == ["-", "30.0"]
    assert table["model.detector"] == ["faster_rcnn", "mask_rcnn"]


def test_numbers_that_a_run_does_not_have_are_dashes_and_null(make: Callable[..., Path], tmp_path: Path) -> None:
    old = [{"iteration": 10, "loss": 2.0, "lr": 0.1}, {"iteration": 20, "loss": float("nan"), "seconds": "soon"}]
    comparison = compare_runs([make("a"), make("b", old), make("c", [])])
    table = cells(comparison.table())
    assert table["box AP"] == ["40.0", "-", "-"]
    assert table["time"] == ["1:02:03", "-", "-"]
    assert "the recipes are the same" in comparison.table()
    runs = json.loads(json.dumps(comparison.to_json(), allow_nan=False))["runs"]
    assert [run["seconds"] for run in runs] == [3723.4, None, None]
    assert runs[1]["best"] is None
    draw_comparison(comparison, tmp_path / "chart.png")
    with Image.open(tmp_path / "chart.png") as image:
        assert image.width > 1000


def test_the_chart_has_a_colour_for_each_run(make: Callable[..., Path], tmp_path: Path) -> None:
    def colours(count: int) -> set[Any]:
        lines = [[{**line, "loss": number + 1.0} for line in LINES] for number in range(count)]
        folders = [make(f"{count}-{number}-$x_{{", lines[number]) for number in range(count)]
        draw_comparison(compare_runs(folders), tmp_path / f"{count}.png")
        with Image.open(tmp_path / f"{count}.png") as image:
            found = image.convert("RGB").getcolors(2**24) or []
        seen = {"#{:02x}{:02x}{:02x}".format(*colour) for number, colour in found if number > 500}
        return seen & set(COLOURS)

    assert colours(1) == {*COLOURS[:1]}
    assert colours(3) == {*COLOURS[:3]}


def test_names_are_as_short_as_they_may_be() -> None:
    assert run_names(["runs/a", "runs/b"]) == ["a", "b"]
    assert run_names(["x/run", "y/run", "z"]) == ["x/run", "y/run", "z"]
    assert run_names(["a", "a"]) == ["a", "a"]
    assert run_names(["."]) == ["."]


@given(st.integers(0, 10**7), st.floats(-0.49, 0.49))
def test_durations_are_read_back(seconds: int, part: float) -> None:
    hours, minutes, rest = duration(max(0, seconds + part)).split(":")
    assert (len(minutes), len(rest)) == (2, 2)
    assert 3600 * int(hours) + 60 * int(minutes) + int(rest) == seconds


@pytest.mark.parametrize("missing", ["recipe.yaml", "metrics.jsonl", ""])
def test_a_folder_that_holds_no_run_is_named(missing: str, make: Callable[..., Path], tmp_path: Path) -> None:
    folder = make("a")
    if missing:
        (folder / missing).unlink()
    else:
        folder = tmp_path / "elsewhere"
    done = command("compare", make("b"), folder)
    assert done.code == 1
    assert folder.name in done.error()
    assert missing in done.error()


def test_the_command_prints_a_table_or_json_and_draws(make: Callable[..., Path], tmp_path: Path) -> None:
    folders = [make("a"), make("b", base_lr=0.01)]
    done = command("compare", *folders, "--chart", tmp_path / "new" / "chart.svg")
    assert done.code == 0, done.err
    assert cells(done.out)["solver.base_lr"] == ["0.02", "0.01"]
    assert (tmp_path / "new" / "chart.svg").read_text().startswith("<?xml")
    done = command("compare", *folders, "--json")
    assert json.loads(done.out)["differences"] == {"solver.base_lr": [0.02, 0.01]}


def test_a_run_that_is_no_text_is_an_input_error(make: Callable[..., Path]) -> None:
    folder = make("a")
    (folder / "recipe.yaml").write_text("solver: {base_lr: fast}")
    with pytest.raises(InputError, match=r"solver\.base_lr"):
        read_run(folder)
