"""Tables, JSON and chart of results that are known."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from cpu_benchmark_cases import SMALL_DETECTOR, TINY, cells

from vovnet.detection.cpu_benchmark.report import draw_chart, format_outcome, format_summary, to_json
from vovnet.detection.cpu_benchmark.running import Outcome, Result
from vovnet.detection.figures import save_figure
from vovnet.results.comparison import Agreement


def outcome_of(ours: bool = True, errors: list[float] | None = None) -> Outcome:
    results = {
        "eager": Result([0.4, 0.5, 0.6], [1e-6, 2e-6]),
        "openvino": Result([0.2, 0.3, 0.4], [1e-6, 4e-6]),
        "fused": Result([0.1, 0.1, 0.2], errors or [1e-6, 3e-6]),
    }
    if not ours:
        del results["fused"]
    return Outcome(TINY, results, [1e-6, 2e-6], {"onnxruntime": "onnx is not installed"})


def test_the_table_of_a_case_by_hand() -> None:
    text = format_outcome(outcome_of())
    _, eager, openvino, fused = cells(text)
    assert eager == ["PyTorch, eager", "500.0", "400.0", "5.00", "4.00", "4.00", "2.00e-06", "1.00"]
    assert openvino == ["OpenVINO", "300.0", "200.0", "3.00", "2.00", "2.00", "4.00e-06", "2.00"]
    assert fused == ["vovnet.fuse", "100.0", "100.0", "1.00", "1.00", "1.00", "3.00e-06", "1.50"]
    assert "ONNX Runtime: onnx is not installed" in text


def test_without_ours_the_best_is_the_measure() -> None:
    outcome = outcome_of(ours=False)
    _, eager, openvino = cells(format_outcome(outcome))
    assert (eager[3], openvino[3]) == ("1.67", "1.00")
    assert "not compared" in format_summary([outcome])


def test_the_summary_names_the_best_of_the_others() -> None:
    slow = outcome_of()
    slow.results["fused"] = Result([0.2, 0.2, 0.2])
    _, first, second = cells(format_summary([outcome_of(), slow]))
    assert first[1:] == ["OpenVINO", "3.00×", "2.00×", "2.00×"]
    assert second[1:] == ["OpenVINO", "1.50×", "1.00×", "1.50×"]


def test_a_detectors_table_says_how_far_it_is_from_eager() -> None:
    result = Result([0.1], agreement=Agreement(99, 100, 1, 0.0125, 2e-5))
    (_, row) = cells(format_outcome(Outcome(SMALL_DETECTOR, {"fused": result}, None, {})))
    assert row[-4:] == ["99, 100", "1", "0.0125", "2.0e-05"]


def test_the_numbers_are_standard_json() -> None:
    numbers = to_json({"threads": 2}, 3, [outcome_of(errors=[math.nan, math.inf])])
    (case,) = json.loads(json.dumps(numbers, allow_nan=False))["cases"]
    assert case["results"]["fused"] == {
        "seconds": [0.1, 0.1, 0.2],
        "errors": [None, None],
        "agreement": None,
        "median": 0.1,
        "least": 0.1,
    }
    assert case["speedup"] == {"medians": pytest.approx(3), "least": pytest.approx(2), "rounds": pytest.approx(2)}
    assert (case["best_peer"], case["height"]) == ("openvino", 64)


@pytest.mark.parametrize("count", [1, 3])
def test_the_chart_has_a_panel_a_case_and_ours_in_colour(tmp_path: Path, count: int) -> None:
    figure = draw_chart([outcome_of()] * count)
    assert len(figure.axes) == count
    bars = figure.axes[0].patches
    assert [bar.get_width() for bar in bars] == pytest.approx([500, 300, 100])
    assert len({bar.get_facecolor() for bar in bars[:2]}) == 1
    assert bars[2].get_facecolor() != bars[0].get_facecolor()
    save_figure(figure, tmp_path / "chart.svg")
    assert "vovnet.fuse" in (tmp_path / "chart.svg").read_text()
