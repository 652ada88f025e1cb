"""The benchmark of the CPU: who runs what, how it is judged and timed, and what is said about it."""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support import command
from torch import Tensor, nn

import vovnet
from vovnet.detection.cpu_benchmark import machine
from vovnet.detection.cpu_benchmark.backends import CONTESTANTS, Contestant, Task, UnavailableError
from vovnet.detection.cpu_benchmark.cases import (
    CANDIDATES,
    CASES,
    Case,
    build_network,
    exact_maps,
    make_images,
)
from vovnet.detection.cpu_benchmark.report import draw_chart, format_outcome, format_summary, to_json
from vovnet.detection.cpu_benchmark.running import Agreement, Outcome, Result, agreement, run_case
from vovnet.detection.cpu_benchmark.timing import TURN_SECONDS, speedup, take_turns
from vovnet.detection.figures import save_figure
from vovnet.errors import InputError
from vovnet.ops.build import loader

TINY = Case("tiny", "vovnet27_slim", 2, 64, 96, "fp32", 2.0)
TINY_BF16 = Case("tiny-bf16", "vovnet27_slim", 1, 64, 96, "bf16", 2.0)
SMALL_DETECTOR = Case("small-detector", "faster_rcnn_vovnet39_fpn", 1, 64, 96, "fp32", 2.0, detector=True)


def fake_fuse(model: nn.Module, precision: str = "fp32") -> nn.Module:
    return copy.deepcopy(model).to({"fp32": torch.float32, "bf16": torch.float64}[precision])


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return Task(TINY, build_network(TINY), make_images(TINY), tmp_path)


# Turns and times


class Clock:
    """Time that passes only when somebody runs."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def runner(self, name: str, *seconds: float) -> Callable[[], None]:
        left = list(seconds)

        def run() -> None:
            self.order.append(name)
            self.now += left.pop(0) if len(left) > 1 else left[0]

        return run


def test_contestants_take_turns_and_change_their_order() -> None:
    clock = Clock()
    runs = {name: clock.runner(name, 1.0) for name in "abc"}
    seconds = take_turns(runs, 3, warmup=2, clock=clock)
    assert "".join(clock.order) == "abccba" + "abccbaabc"
    assert seconds == {name: [1.0] * 3 for name in "abc"}


def test_the_warm_up_is_not_counted() -> None:
    clock = Clock()
    assert take_turns({"a": clock.runner("a", 9.0, 8.0, 3.0, 2.0)}, 2, warmup=2, clock=clock) == {"a": [3.0, 2.0]}


def test_short_calls_are_timed_together_after_one_that_is_not_counted() -> None:
    clock = Clock()
    runs = {"long": clock.runner("long", 1.0), "short": clock.runner("short", TURN_SECONDS / 4.5)}
    seconds = take_turns(runs, 1, warmup=1, clock=clock)
    assert clock.order.count("long") == 2
    assert clock.order.count("short") == 1 + 1 + 4
    assert seconds["short"] == pytest.approx([TURN_SECONDS / 4.5])


def test_speedups_by_hand() -> None:
    gain = speedup([1.0, 2.0, 4.0], [3.0, 8.0, 4.0])
    assert (gain.medians, gain.least, gain.rounds) == (2.0, 3.0, 3.0)  # 4 / 2, 3 / 1, the middle of 3, 4 and 1


# Cases


def test_the_cases_are_those_of_the_goals() -> None:
    assert {case.name: case.goal for case in CASES.values()} == {
        "v39-800": 2.15,
        "v39-224": 1.8,
        "v39-224-b8": 2.1,
        "v57-800": 2.1,
        "v39-800-bf16": 1.7,
        "detector": 3.2,
    }
    assert all(name == case.name for name, case in CASES.items())


def test_a_network_is_the_same_each_time_and_draws_nothing_from_the_caller() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second = build_network(TINY), build_network(TINY)
    assert torch.equal(before, torch.get_rng_state())
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert torch.equal(make_images(TINY), make_images(TINY))
    assert not first.training


def test_convolutions_are_hes_and_norms_are_calibrated() -> None:
    model = build_network(TINY)
    seen: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            expected = math.sqrt(2 / (module.in_channels * 9 if module.kernel_size == (3, 3) else module.in_channels))
            assert float(module.weight.detach().std()) == pytest.approx(expected, rel=0.1), name
            module.register_forward_hook(lambda m, i, output, name=name: seen.update({name: output}))
    with torch.no_grad():
        model(torch.randn(2, 3, 224, 224))
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            output = seen[name.removesuffix(".bn") + ".conv"]
            normed = (output - module.running_mean[:, None, None]) / module.running_var[:, None, None].sqrt()  # type: ignore[index]
            assert abs(float(normed.mean())) < 0.3, name
            assert 0.6 < float(normed.std()) < 1.6, name
            assert module.momentum == 0.1


def test_the_exact_answer_is_that_of_float64_and_leaves_the_network() -> None:
    model, images = build_network(TINY), make_images(TINY)
    exact = exact_maps(model, images)
    assert next(model.parameters()).dtype == torch.float32
    assert [tuple(x.shape[2:]) for x in exact] == [(16, 24), (8, 12), (4, 6), (2, 3)]
    with torch.no_grad():
        for ours, x in zip(model(images), exact, strict=True):
            assert x.dtype == torch.float64
            assert 0 < float((ours.double() - x).abs().max()) < 1e-2


def test_a_detector_finds_as_many_candidates_as_a_trained_one() -> None:
    detector: Any = build_network(SMALL_DETECTOR)
    seen: list[Tensor] = []
    detector.roi_heads.box_predictor.cls_score.register_forward_hook(lambda m, i, output: seen.append(output))
    with torch.no_grad():
        found = detector([make_images(SMALL_DETECTOR)[0]])[0]
    passing = int((seen[0].softmax(1)[:, 1:] > 0.05).sum())
    assert passing == pytest.approx(CANDIDATES, abs=2)
    assert 0 < len(found["scores"]) <= 100
    assert float(found["scores"].min()) > 0.05


# Contestants


@pytest.mark.parametrize(
    "name",
    [
        "eager",
        "channels-last",
        pytest.param("compile", marks=pytest.mark.slow),
        "onnxruntime",
        "openvino",
        "fused",
    ],
)
def test_each_contestant_computes_the_network(task: Task, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in ("onnxruntime", "openvino"):
        for package in ("onnx", "onnxscript", name):
            pytest.importorskip(package)
    monkeypatch.setattr(vovnet, "fuse", fake_fuse)
    before = copy.deepcopy(task.model.state_dict())
    with torch.inference_mode():
        run = CONTESTANTS[name].set_up(task)
        first = [x.clone() for x in run()]
        again = run()
    for x, y, exact in zip(first, again, exact_maps(task.model, task.images), strict=True):
        assert torch.equal(x, y)
        assert x.dtype == torch.float32
        assert float((x.double() - exact).abs().max()) < 1e-2
    for key, value in task.model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_in_bfloat16_eager_computes_in_it_and_onnx_runtime_says_that_it_cannot(tmp_path: Path) -> None:
    task = Task(TINY_BF16, build_network(TINY_BF16), make_images(TINY_BF16), tmp_path)
    with torch.inference_mode():
        assert [x.dtype for x in CONTESTANTS["channels-last"].set_up(task)()] == [torch.bfloat16] * 4
    with pytest.raises(UnavailableError, match="no convolutions in bf16"):
        CONTESTANTS["onnxruntime"].set_up(task)


@pytest.mark.parametrize("missing", ["openvino", "onnx"])
def test_a_runtime_that_is_not_installed_is_named_with_the_mend(
    task: Task, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named '{missing}'", name=missing)

    monkeypatch.setattr("vovnet.detection.cpu_benchmark.backends.import_module", absent)
    with pytest.raises(UnavailableError, match=rf"{missing} is not installed: pip install 'vovnet\[benchmark\]'"):
        CONTESTANTS["openvino"].set_up(task)


def test_a_runtime_that_fails_stays_out_and_a_defect_of_ours_is_shown(task: Task) -> None:
    def fail(task: Task) -> Any:
        raise RuntimeError("no such luck\nat line 3")

    with pytest.raises(UnavailableError, match=r"^failed: RuntimeError: no such luck$"):
        Contestant("x", "X", fail, foreign=True).set_up(task)
    with pytest.raises(RuntimeError, match="no such luck"):
        Contestant("x", "X", fail).set_up(task)


def test_what_fuse_refuses_is_said(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: nn.Module, precision: str) -> nn.Module:
        raise InputError("precision='fp32': not today")

    monkeypatch.setattr(vovnet, "fuse", refuse)
    with pytest.raises(UnavailableError, match="not today"):
        CONTESTANTS["fused"].set_up(task)


# Judgement


def detections(*rows: tuple[float, int, float]) -> dict[str, Tensor]:
    """Of a left edge, a label and a score each; boxes are 10 × 10."""
    boxes = torch.tensor([[x, 0.0, x + 10, 10.0] for x, _, _ in rows]).reshape(-1, 4)
    labels = torch.tensor([label for _, label, _ in rows], dtype=torch.int64)
    return {"boxes": boxes, "labels": labels, "scores": torch.tensor([score for *_, score in rows])}


EAGER = detections((0, 1, 0.9), (100, 2, 0.8), (200, 1, 0.7))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (EAGER, (3, 3, 0, 0.0, 0.0)),
        (detections((200.25, 1, 0.7), (0, 1, 0.875), (100, 2, 0.8)), (3, 3, 0, 0.25, 0.025)),
        (detections((0, 1, 0.9), (100, 1, 0.8), (200, 1, 0.7)), (3, 3, 2, 0.0, 0.0)),  # another class
        (detections((0, 1, 0.9), (100, 2, 0.8), (300, 1, 0.7)), (3, 3, 2, 0.0, 0.0)),  # another place
        (detections((0, 1, 0.9)), (1, 3, 2, 0.0, 0.0)),
        (detections(), (0, 3, 3, 0.0, 0.0)),
    ],
)
def test_agreement_of_detections_by_hand(answer: dict[str, Tensor], expected: tuple[Any, ...]) -> None:
    found = agreement(answer, EAGER)
    assert (found.count, found.eager_count, found.unmatched) == expected[:3]
    assert (found.box_distance, found.score_distance) == pytest.approx(expected[3:], abs=1e-6)


def test_a_case_is_judged_against_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(model: nn.Module, precision: str) -> nn.Module:
        class Shifted(nn.Module):
            def forward(self, x: Tensor) -> list[Tensor]:
                return [y + 0.5 for y in model(x)]

        return Shifted()

    monkeypatch.setattr(vovnet, "fuse", shifted)
    told: list[str] = []
    outcome = run_case(TINY, ["eager", "channels-last", "fused"], 2, told.append)
    assert list(outcome.results) == ["eager", "channels-last", "fused"]
    assert all(len(result.seconds) == 2 and min(result.seconds) > 0 for result in outcome.results.values())
    assert outcome.results["eager"].errors == outcome.eager_errors
    assert outcome.results["fused"].errors == pytest.approx([0.5] * 4, rel=1e-3)
    assert max(outcome.results["channels-last"].errors or [1.0]) < 1e-3
    assert any("preparing vovnet.fuse" in line for line in told)


def test_fuse_is_as_exact_as_it_says() -> None:
    """At most twice the error of eager PyTorch, at the depth of a whole network."""
    if "AVX512" not in torch.backends.cpu.get_cpu_capability() or not loader.cpu_operators():
        pytest.skip("both errors are measured on processors with AVX-512, with compiled kernels")
    ours = run_case(CASES["v39-224"], ["fused"], 1, lambda _: None)
    assert ours.eager_errors is not None
    assert ours.results["fused"].errors is not None
    ratio = ours.results["fused"].errors[-1] / ours.eager_errors[-1]
    assert 0.5 < ratio <= 2


def test_a_detector_is_held_to_the_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vovnet, "fuse", fake_fuse)
    outcome = run_case(SMALL_DETECTOR, ["onnxruntime", "fused"], 1, lambda text: None)
    found = outcome.results["fused"].agreement
    assert found is not None
    assert found.count == found.eager_count > 0
    assert (found.unmatched, found.box_distance, found.score_distance) == (0, 0.0, 0.0)
    assert outcome.absent == {"onnxruntime": "compared on backbones only"}
    assert outcome.speedup is None


# What is said


def outcome_of(ours: bool = True, errors: list[float] | None = None) -> Outcome:
    results = {
        "eager": Result([0.4, 0.5, 0.6], [1e-6, 2e-6]),
        "openvino": Result([0.2, 0.3, 0.4], [1e-6, 4e-6]),
        "fused": Result([0.1, 0.1, 0.2], errors or [1e-6, 3e-6]),
    }
    if not ours:
        del results["fused"]
    return Outcome(TINY, results, [1e-6, 2e-6], {"onnxruntime": "onnx is not installed"})


def cells(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]


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


def test_the_summary_names_the_best_of_the_others_and_the_goal() -> None:
    slow = outcome_of()
    slow.results["fused"] = Result([0.2, 0.2, 0.2])
    _, reached, missed = cells(format_summary([outcome_of(), slow]))
    assert reached[1:] == ["OpenVINO", "3.00×", "2.00×", "2.00×", "2×", "reached"]
    assert missed[1:] == ["OpenVINO", "1.50×", "1.00×", "1.50×", "2×", "missed"]


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
    assert (case["best_peer"], case["goal"], case["height"]) == ("openvino", 2.0, 64)


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


# The machine


@pytest.mark.parametrize(
    ("text", "mode"), [("always [madvise] never\n", "madvise"), ("[always] madvise never", "always"), ("", "unknown")]
)
def test_the_kernels_setting_for_huge_pages(tmp_path: Path, text: str, mode: str) -> None:
    (tmp_path / "enabled").write_text(text)
    assert machine.huge_page_mode(tmp_path / "enabled") == mode
    assert machine.huge_page_mode(tmp_path / "absent") == "unknown"


def test_variables_for_huge_pages_keep_what_is_there() -> None:
    wanted = machine.with_huge_pages({"A": "b"})
    assert wanted == {"A": "b", "THP_MEM_ALLOC_ENABLE": "1", "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
    assert machine.with_huge_pages(wanted) == wanted
    more = machine.with_huge_pages({"GLIBC_TUNABLES": "glibc.malloc.check=3"})
    assert more["GLIBC_TUNABLES"] == "glibc.malloc.check=3:glibc.malloc.hugetlb=1"
    own = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}
    assert machine.with_huge_pages(own)["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=0"


@pytest.mark.parametrize(
    ("mode", "set_already", "starts"), [("madvise", False, 1), ("madvise", True, 0), ("always", False, 0)]
)
def test_the_command_starts_anew_once(
    mode: str, set_already: bool, starts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[tuple[Any, ...]] = []
    monkeypatch.setattr(machine, "huge_page_mode", lambda: mode)
    monkeypatch.setattr(machine.os, "execve", lambda *given: started.append(given))
    monkeypatch.setattr(sys, "orig_argv", ["python3", "bin/vovnet", "benchmark", "cpu"])
    variables = {"PATH": "/bin"}
    machine.restart_with_huge_pages(machine.with_huge_pages(variables) if set_already else variables)
    assert len(started) == starts
    for program, arguments, environment in started:
        assert program == sys.executable
        assert arguments == [sys.executable, "bin/vovnet", "benchmark", "cpu"]
        assert environment["THP_MEM_ALLOC_ENABLE"] == "1"


def test_the_machine_is_described_with_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "PACKAGES", ("torch", "no-such-package"))
    facts = machine.describe_machine()
    assert facts["threads"] == torch.get_num_threads()
    assert facts["torch"] == torch.__version__.partition("+")[0] or facts["torch"] == torch.__version__
    assert facts["no-such-package"] == "not installed"


# The command


@pytest.fixture
def tiny_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vovnet, "fuse", fake_fuse)
    for case in (TINY, SMALL_DETECTOR):
        monkeypatch.setitem(CASES, case.name, case)


@pytest.mark.usefixtures("tiny_cases")
def test_the_command_prints_and_leaves_table_numbers_and_charts(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    chosen = ["--case", "tiny", "--contestant", "channels-last", "--contestant", "fused", "--rounds", 2]
    done = command("benchmark", "cpu", *chosen, "--threads", 1, "--no-huge-pages", "--output", tmp_path / "out")
    assert done.code == 0, done.err
    assert torch.get_num_threads() == threads
    assert "### tiny: vovnet27_slim, backbone, fp32, 2 × 64×96" in done.out
    assert "preparing" in done.err
    assert "preparing" not in done.out
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "chart.png",
        "chart.svg",
        "results.json",
        "table.md",
    ]
    numbers = json.loads((tmp_path / "out" / "results.json").read_text())
    assert numbers["machine"]["threads"] == 1
    assert (numbers["rounds"], list(numbers["cases"][0]["results"])) == (2, ["channels-last", "fused"])
    assert cells((tmp_path / "out" / "table.md").read_text())[1][1] == "PyTorch, eager, channels-last"
    assert Image.open(tmp_path / "out" / "chart.png").width > 500
    again = command("benchmark", "cpu", *chosen, "--no-huge-pages", "--output", tmp_path / "out")
    again.refused("--output", "not empty", "--overwrite")


@pytest.mark.parametrize(("option", "known"), [("--case", "v39-800"), ("--contestant", "openvino")])
def test_unknown_names_are_refused_with_those_there_are(option: str, known: str) -> None:
    command("benchmark", "cpu", option, "v40", "--no-huge-pages").refused(f"{option} v40", known)
