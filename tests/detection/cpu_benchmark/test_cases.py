"""The networks and images that are measured."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from cpu_benchmark_cases import SMALL_DETECTOR, TINY
from torch import Tensor, nn

from vovnet.detection.cpu_benchmark.cases import (
    CANDIDATES,
    CASES,
    build_network,
    exact_maps,
    make_images,
    quantization_inputs,
)


def test_cases_are_found_by_their_names() -> None:
    backbones = ["v39-800", "v39-224", "v39-224-b8", "v57-800", "v39-800-bf16", "v39-224-bf16"]
    assert list(CASES) == [*backbones, "detector", "detector-480", "detector-bf16", "detector-480-bf16"]
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


def test_int8_learns_its_ranges_from_the_image_and_others() -> None:
    first, *others = quantization_inputs(TINY)
    assert torch.equal(first, make_images(TINY))
    assert others
    assert all(x.shape == first.shape and not torch.equal(x, first) for x in others)


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
