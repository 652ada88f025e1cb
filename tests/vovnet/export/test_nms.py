"""Suppression with an output of fixed size keeps what torchvision's keeps, eagerly, traced, in ONNX and in OpenVINO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.ops import batched_nms

from vovnet.export.nms import onnx_translations, openvino_extension, padded_nms

THRESHOLD, LIMIT = 0.4, 12


class Suppression(nn.Module):
    """The operator with its settings."""

    def forward(self, boxes: Tensor, scores: Tensor) -> Tensor:
        """Return the indices."""
        return padded_nms(boxes, scores, THRESHOLD, LIMIT)


def candidates(groups: int, length: int, seed: int, rejected: float = 0.3) -> tuple[Tensor, Tensor]:
    """Boxes that overlap, with different scores; some are no candidates."""
    numbers = torch.Generator().manual_seed(seed)
    corners = torch.rand(groups, length, 2, generator=numbers) * 40
    boxes = torch.cat((corners, corners + 5 + 30 * torch.rand(groups, length, 2, generator=numbers)), dim=2)
    scores = (torch.randperm(groups * length, generator=numbers).float() + 1) / (groups * length)
    scores[torch.rand(groups * length, generator=numbers) < rejected] = -1
    return boxes, scores.reshape(groups, length)


def expected(boxes: Tensor, scores: Tensor, limit: int) -> list[int]:
    """torchvision's answer, padded."""
    flat = scores.reshape(-1)
    rows = torch.where(flat >= 0)[0]
    groups = torch.arange(len(boxes)).repeat_interleave(boxes.shape[1])
    kept = rows[batched_nms(boxes.reshape(-1, 4)[rows], flat[rows], groups[rows], THRESHOLD)].tolist()
    return (kept + [-1] * limit)[:limit]


@given(groups=st.integers(1, 4), length=st.integers(1, 12), limit=st.integers(1, 60), seed=st.integers(0, 10**6))
def test_the_best_of_all_groups_are_kept(groups: int, length: int, limit: int, seed: int) -> None:
    boxes, scores = candidates(groups, length, seed)
    assert padded_nms(boxes, scores, THRESHOLD, limit).tolist() == expected(boxes, scores, limit)


def test_nothing_is_kept_of_no_candidates() -> None:
    boxes, scores = candidates(2, 5, 0, rejected=1.0)
    assert padded_nms(boxes, scores, THRESHOLD, 3).tolist() == [-1, -1, -1]


def test_the_operator_is_registered_as_it_should() -> None:
    torch.library.opcheck(torch.ops.vovnet.padded_nms.default, (*candidates(3, 6, 1), THRESHOLD, LIMIT))


def answers(run: Any) -> None:
    """Compare a runtime with torchvision on candidates that fill the output, do not fill it, and are none."""
    for seed, rejected in ((0, 0.0), (1, 0.3), (2, 0.9), (3, 1.0)):
        boxes, scores = candidates(3, 20, seed, rejected)
        assert list(run(boxes, scores)) == expected(boxes, scores, LIMIT)


def test_torchscript_contains_torchvisions_operator_only(tmp_path: Path) -> None:
    torch.jit.trace(Suppression(), candidates(3, 20, 0)).save(tmp_path / "nms.pt")
    opened: Any = torch.jit.load(tmp_path / "nms.pt")
    assert "vovnet::" not in str(opened.graph)
    answers(lambda boxes, scores: opened(boxes, scores).tolist())


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    return torch.export.export(Suppression(), candidates(3, 20, 0), strict=True)


def test_onnx_runtime_keeps_the_same(program: torch.export.ExportedProgram, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    written: Any = torch.onnx.export(program, dynamo=True, verbose=False, custom_translation_table=onnx_translations())
    written.save(tmp_path / "nms.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "nms.onnx")
    names = [one.name for one in session.get_inputs()]

    def run(*tensors: Tensor) -> list[int]:
        found: np.ndarray[Any, Any] = session.run(
            None, {name: one.numpy() for name, one in zip(names, tensors, strict=True)}
        )[0]
        return found.tolist()

    answers(run)


def test_openvino_keeps_the_same(program: torch.export.ExportedProgram) -> None:
    openvino: Any = pytest.importorskip("openvino")
    converted = openvino.convert_model(program, extension=[openvino_extension()], input=[[3, 20, 4], [3, 20]])
    model = openvino.compile_model(converted, "CPU")
    answers(lambda *tensors: model([one.numpy() for one in tensors])[0].tolist())
