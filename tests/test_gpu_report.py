"""``make gpu``: every section starts with five packages alone, and one that breaks costs no other."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from only_packages import hide_all_but

ROOT = Path(__file__).resolve().parent.parent
FIVE = ("torch", "torchvision", "timm", "safetensors", "huggingface_hub")


@pytest.fixture(scope="module")
def gpu() -> Iterator[Any]:
    """The modules of ``benchmarks.gpu``, imported from the repository's root."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT))
        names = ("records", "report", "running", "sections", "setting", "steps", "kernels", "__main__")
        yield SimpleNamespace(**{name: import_module(f"benchmarks.gpu.{name}") for name in names})


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command where only the five packages can be imported."""
    site = folder / "site"
    site.mkdir()
    hide_all_but(site, *FIVE)
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )


def test_only_the_five_packages_can_be_imported(tmp_path: Path) -> None:
    hide_all_but(tmp_path, *FIVE)
    asked = ("torch", "numpy", "pydantic", "pytest", "typer")
    tried = f"from importlib.util import find_spec; print([name for name in {asked} if find_spec(name)])"
    done = subprocess.run(
        [sys.executable, "-c", tried],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "['torch', 'numpy']\n"


def test_without_a_gpu_one_line_names_the_small_case(tmp_path: Path) -> None:
    report = tmp_path / "gpu_report.md"
    done = run(tmp_path, "--output", str(report))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "NVIDIA GPU" in line
    assert "make gpu GPU_ARGS=--cpu" in line
    assert not report.exists()


def test_what_is_missing_is_named_with_its_mend(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu.__main__.importlib.util, "find_spec", lambda name: None if name in ("timm", "torch") else 1)
    lack = gpu.__main__.missing(cpu=True)
    assert "pip install torch timm" in lack
    assert "\n" not in lack


def test_a_report_is_not_replaced_unless_asked(gpu: Any, tmp_path: Path) -> None:
    report = tmp_path / "gpu_report.md"
    report.write_text("of the day with a GPU")
    with pytest.raises(SystemExit, match="--overwrite"):
        gpu.__main__.main(["--cpu", "--output", str(report)])
    assert report.read_text() == "of the day with a GPU"
    with pytest.raises(SystemExit, match="folder"):
        gpu.__main__.main(["--cpu", "--output", str(tmp_path / "nowhere" / "report.md")])


@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="the operators' benchmark needs PyTorch 2.9")
def test_some_sections_run_with_the_five_packages_alone(tmp_path: Path) -> None:
    report = tmp_path / "gpu_report.md"
    done = run(tmp_path, "--cpu", "--output", str(report), "--sections", "ceilings", "kernels")
    assert done.returncode == 0, done.stderr
    text = report.read_text(encoding="utf-8")
    assert text.count("| complete |") == 2, text
    (row,) = [line for line in text.splitlines() if line.startswith("| weight gradient | fp32 |")]
    assert float(row.split("|")[-2]) > 0


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="the operators' benchmark needs PyTorch 2.9")
def test_every_section_runs_with_the_five_packages_alone(gpu: Any, tmp_path: Path) -> None:
    report = tmp_path / "gpu_report.md"
    done = run(tmp_path, "--cpu", "--output", str(report))
    assert done.returncode == 0, done.stderr
    text = report.read_text(encoding="utf-8")
    assert text.count("| complete |") == len(gpu.sections.SECTIONS), text


HOSTILE = """
import os, time
from benchmarks.gpu.steps import Result, Skipped, Step

def fail():
    raise ValueError("three | words\\nand a line")

def skip():
    raise Skipped("not here")

def vanish():
    os._exit(9)

def hang():
    child = os.fork() or os.execvp("sleep", ["sleep", "600"])
    open(__file__ + ".pid", "w").write(str(child))
    while True:
        time.sleep(1)

def steps(setting):
    return [Step(name, function) for name, function in STEPS]
"""


def hostile(gpu: Any, folder: Path, name: str, steps: str, share: int = 1, step_seconds: int = 600) -> Any:
    (folder / f"{name}_steps.py").write_text(f"{HOSTILE}\nSTEPS = [{steps}]\n")
    return gpu.sections.Section(name, f"Section {name}", share, step_seconds, ("a", "b"), "", f"{name}_steps")


@pytest.fixture
def outcomes(gpu: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run sections whose steps are written in Python; return how each ended."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))

    def run(sections: list[Any], seconds: float) -> dict[str, Any]:
        found: dict[str, Any] = {}
        records = tmp_path / "records"
        records.mkdir()
        gpu.running.run_sections(sections, records, seconds, found.__setitem__, cpu=True)
        return found

    return run


GOOD = '("good", lambda: Result([("1", "2")], {"copy": 3.0}))'


def is_running(pid: str) -> bool:
    """True if a process exists, and not only as an entry that nobody has asked for yet."""
    try:
        status = Path("/proc", pid, "stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_a_step_that_breaks_its_process_costs_no_other(gpu: Any, tmp_path: Path, outcomes: Any) -> None:
    last = GOOD.replace("good", "last")
    steps = f'("bad", fail), ("gone", vanish), ("no", skip), {GOOD}, ("stuck", hang), {last}'
    section = hostile(gpu, tmp_path, "hard", steps, step_seconds=1)
    (outcome,) = outcomes([section], 500).values()
    states = {name: record.state for name, record in outcome.records.items()}
    stuck = {"gone": "started", "stuck": "started"}
    assert states == {"bad": "failed", "no": "skipped", "good": "passed", "last": "passed", **stuck}
    assert not is_running((tmp_path / "hard_steps.py.pid").read_text())
    text = gpu.report.render("Report", [section], {"hard": outcome})
    assert "2 passed, 1 failed, 2 did not end, 1 skipped" in text
    assert "| a | b |\n|---|---|\n| 1 | 2 |\n| 1 | 2 |\n" in text
    assert "- **failed**: bad: ValueError: three | words and a line\n" in text
    assert "- **did not end**: gone\n" in text


def test_a_section_that_never_ends_is_ended_and_the_next_one_runs(gpu: Any, tmp_path: Path, outcomes: Any) -> None:
    endless = hostile(gpu, tmp_path, "endless", '("slow", hang)', share=1)
    broken = hostile(gpu, tmp_path, "broken", "undefined", share=100)
    found = outcomes([endless, broken], 300)
    assert "ran out of time" in found["endless"].state
    assert found["endless"].limit == pytest.approx(300 / 101, abs=0.5)
    assert "exit code 1" in found["broken"].state
    assert "NameError: name 'undefined' is not defined" in found["broken"].log


def test_a_floor_is_the_larger_of_two_times(gpu: Any) -> None:
    ceilings = gpu.setting.Ceilings({"copy": 100.0, "fp16": 10.0})
    assert ceilings.floor("fp16", moved=200, operations=10) == 2
    assert ceilings.floor("fp16", moved=200, operations=50) == 5
    assert ceilings.floor("bf16", moved=200) == 2
    assert ceilings.floor("bf16", moved=200, operations=50) is None
    assert gpu.setting.over(4.0, 2.0) == "2.00"


def test_what_the_kernels_move_by_hand(gpu: Any) -> None:
    operators = import_module("benchmarks.operators")
    case = operators.Aggregation("a stage", (1, 2, 4), (8, 16), 32, True)
    kernels = {kernel.name: kernel for kernel in gpu.kernels.kernels_of(case, "fp16", torch.device("cpu"))}
    # 8 pixels, 24 channels to 32, 2 bytes each: maps 384, result 512, matrix 1536, bias 64; 32 bytes of bits.
    moved = [kernel.moved for kernel in kernels.values()]
    assert moved == [384 + 1536 + 64 + 512 + 32, 512 + 1536 + 384, 512 + 384 + 1536, 2 * 512 + 32 + 4 * 32]
    assert [kernel.operations for kernel in kernels.values()] == [2 * 8 * 24 * 32] * 3 + [0]
    d_inputs, d_weight, _ = kernels["input gradients"].call()
    assert [tuple(d.shape) for d in d_inputs] == [(1, 8, 2, 4), (1, 16, 2, 4)]
    assert d_weight.numel() == 0
    d_inputs, d_weight, _ = kernels["weight gradient"].call()
    assert not any(d.numel() for d in d_inputs)
    assert d_weight.shape == (32, 24, 1, 1)


def test_a_torn_record_is_left_out(gpu: Any, tmp_path: Path) -> None:
    path = tmp_path / "some.jsonl"
    for state in ("started", "passed"):
        gpu.records.append(path, gpu.records.Record("one", state))
    with path.open("a") as file:
        file.write('{"step": "two", "sta')
    assert {name: record.state for name, record in gpu.records.read(path).items()} == {"one": "passed"}
    assert gpu.records.read(tmp_path / "none") == {}
