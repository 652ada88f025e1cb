"""The command ``vovnet benchmark cpu``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cpu_benchmark_cases import SMALL_DETECTOR, TINY, cells, fake_fuse
from PIL import Image
from support import command

import vovnet
from vovnet.detection.cpu_benchmark.cases import CASES


@pytest.fixture
def tiny_cases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vovnet, "fuse", fake_fuse)
    for case in (TINY, SMALL_DETECTOR):
        monkeypatch.setitem(CASES, case.name, case)


@pytest.mark.usefixtures("tiny_cases")
def test_the_command_prints_and_leaves_table_numbers_and_charts(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    chosen = ["--case", "tiny", "--backend", "channels-last", "--backend", "fused", "--rounds", 2]
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


@pytest.mark.parametrize(("option", "known"), [("--case", "v39-800"), ("--backend", "openvino")])
def test_unknown_names_are_refused_with_those_there_are(option: str, known: str) -> None:
    command("benchmark", "cpu", option, "v40", "--no-huge-pages").refused(f"{option} v40", known)
