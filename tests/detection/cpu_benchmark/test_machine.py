"""The machine is described, and the command restarts itself for huge pages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from vovnet.detection.cpu_benchmark import machine


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
