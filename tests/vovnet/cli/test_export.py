"""``vovnet export`` as a user types it: options that do not fit are refused before anything is computed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support import command

INT8 = ("--format", "openvino", "--output", "model.xml", "--precision", "int8")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--format", "onnx", "--output", "model.onnx", "--precision", "bf16"), "precision bf16"),
        (("--format", "pt2", "--output", "model.pt2", "--precision", "int8"), "precision int8"),
        (("--format", "onnx", "--output", "model.onnx", "--calibrate", "images"), "--calibrate"),
        (INT8, "--calibrate FOLDER"),
        (("--format", "openvino", "--output", "model.onnx"), "output model.onnx"),
        (("--format", "onnx", "--output", "model.onnx", "--dynamic", "--size", "9x9"), "--dynamic"),
        (("--format", "onnx", "--output", "model.onnx", "--size", "9"), "--size 9"),
    ],
)
def test_options_that_do_not_fit(
    arguments: tuple[str, ...], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = command("export", "no-such-weights", *arguments)
    assert outcome.code != 0
    assert re.search(re.escape(named), outcome.err)
    assert len(outcome.err.splitlines()) == 1
    assert not list(tmp_path.iterdir())
