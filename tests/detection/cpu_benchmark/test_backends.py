"""Every backend computes the network, or says why it cannot."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from cpu_benchmark_cases import TINY, TINY_BF16, fake_fuse
from torch import nn

import vovnet
from vovnet.detection.cpu_benchmark.backends import BACKENDS, Backend
from vovnet.detection.cpu_benchmark.cases import build_network, exact_maps, make_images
from vovnet.detection.cpu_benchmark.task import Task, UnavailableError
from vovnet.errors import InputError


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return Task(TINY, build_network(TINY), make_images(TINY), tmp_path)


@pytest.mark.parametrize(
    "name",
    ["eager", "channels-last", pytest.param("compile", marks=pytest.mark.slow), "onnxruntime", "openvino", "fused"],
)
def test_each_backend_computes_the_network(task: Task, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in ("onnxruntime", "openvino"):
        for package in ("onnx", "onnxscript", name):
            pytest.importorskip(package)
    monkeypatch.setattr(vovnet, "fuse", fake_fuse)
    before = copy.deepcopy(task.model.state_dict())
    with torch.inference_mode():
        run = BACKENDS[name].set_up(task)
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
        assert [x.dtype for x in BACKENDS["channels-last"].set_up(task)()] == [torch.bfloat16] * 4
    with pytest.raises(UnavailableError, match="no convolutions in bf16"):
        BACKENDS["onnxruntime"].set_up(task)


@pytest.mark.parametrize(("name", "missing"), [("openvino", "openvino"), ("onnxruntime", "onnx")])
def test_a_library_that_is_not_installed_is_named_with_the_mend(
    task: Task, name: str, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def absent(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named '{missing}'", name=missing)

    monkeypatch.setattr("vovnet.export.writing.import_module", absent)
    with pytest.raises(UnavailableError, match=rf"{missing} is not installed: .*\[benchmark\]"):
        BACKENDS[name].set_up(task)


def test_int8_takes_part_beside_bfloat16_alone(task: Task) -> None:
    for name in ("onnxruntime-int8", "openvino-int8"):
        with pytest.raises(UnavailableError, match="bf16"):
            BACKENDS[name].set_up(task)


@pytest.mark.parametrize("name", ["onnxruntime-int8", "openvino-int8"])
def test_int8_backends_multiply_integers(tmp_path: Path, name: str) -> None:
    for package in ("nncf", "onnx", "onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    task = Task(TINY_BF16, build_network(TINY_BF16), make_images(TINY_BF16), tmp_path)
    with torch.inference_mode():
        maps = BACKENDS[name].set_up(task)()
        for x, exact in zip(maps, exact_maps(task.model, task.images), strict=True):
            assert 1e-4 < float((x - exact).square().mean() / exact.square().mean()) < 0.5
    if name == "openvino-int8":
        assert 'element_type="i8"' in (tmp_path / "int8.xml").read_text()
    else:
        import onnx

        model = onnx.load(tmp_path / "int8.onnx")
        assert "QuantizeLinear" in {node.op_type for node in model.graph.node}


def test_a_runtime_that_fails_stays_out_and_a_defect_of_ours_is_shown(task: Task) -> None:
    def fail(task: Task) -> Any:
        raise RuntimeError("no such luck\nat line 3")

    with pytest.raises(UnavailableError, match=r"^failed: RuntimeError: no such luck$"):
        Backend("x", "X", fail, foreign=True).set_up(task)
    with pytest.raises(RuntimeError, match="no such luck"):
        Backend("x", "X", fail).set_up(task)


def test_what_fuse_refuses_is_said(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(model: nn.Module, precision: str) -> nn.Module:
        raise InputError("precision='fp32': not today")

    monkeypatch.setattr(vovnet, "fuse", refuse)
    with pytest.raises(UnavailableError, match="not today"):
        BACKENDS["fused"].set_up(task)
