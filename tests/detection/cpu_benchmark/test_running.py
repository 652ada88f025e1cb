"""How answers are checked against float64 and against the eager detector."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from cpu_benchmark_cases import SMALL_DETECTOR, TINY, TINY_DETECTOR, fake_fuse
from torch import Tensor, nn

import vovnet
from vovnet.detection.cpu_benchmark.cases import CASES
from vovnet.detection.cpu_benchmark.running import run_case
from vovnet.ops.build import loader


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
    """The error of a whole network is at most twice eager PyTorch's."""
    if "AVX512" not in torch.backends.cpu.get_cpu_capability() or not loader.cpu_operators():
        pytest.skip("both errors are measured on processors with AVX-512, with compiled kernels")
    ours = run_case(CASES["v39-224"], ["fused"], 1, lambda _: None)
    assert ours.eager_errors is not None
    assert ours.results["fused"].errors is not None
    ratio = ours.results["fused"].errors[-1] / ours.eager_errors[-1]
    assert 0.5 < ratio <= 2


def test_a_detector_is_held_to_the_eager_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vovnet, "fuse", fake_fuse)
    outcome = run_case(SMALL_DETECTOR, ["compile", "fused"], 1, lambda text: None)
    found = outcome.results["fused"].agreement
    assert found is not None
    assert found.count == found.eager_count > 0
    assert (found.unmatched, found.box_distance, found.score_distance) == (0, 0.0, 0.0)
    assert outcome.absent == {"compile": "compared on backbones only"}
    assert outcome.speedup is None


def test_exported_detectors_find_what_the_eager_one_finds() -> None:
    for package in ("onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    outcome = run_case(TINY_DETECTOR, ["onnxruntime", "openvino"], 1, lambda text: None)
    assert outcome.absent == {}
    for name in ("onnxruntime", "openvino"):
        found = outcome.results[name].agreement
        assert found is not None
        assert found.count == found.eager_count > 0
        assert found.unmatched == 0
        assert found.box_distance < 0.05
        assert found.score_distance < 1e-3


def test_detections_in_bfloat16_are_held_to_those_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vovnet, "fuse", lambda model, precision: copy.deepcopy(model))
    case = replace(SMALL_DETECTOR, precision="bf16")
    outcome = run_case(case, ["eager", "fused"], 1, lambda text: None)
    exact, autocast = (outcome.results[name].agreement for name in ("fused", "eager"))
    assert exact is not None
    assert autocast is not None
    assert (exact.unmatched, exact.box_distance, exact.score_distance) == (0, 0.0, 0.0)
    assert autocast.unmatched or autocast.score_distance > 1e-4
