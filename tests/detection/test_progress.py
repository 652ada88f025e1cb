"""Progress in files is a line now and then, in terminals and notebooks a bar, and with --quiet nothing."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
import tqdm

from vovnet.detection import progress
from vovnet.detection.progress import ProgressLines, open_bar, progress_bar
from vovnet.terminal.streams import be_quiet


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def loud() -> Iterator[None]:
    yield
    be_quiet(False)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def steps(clock: list[float], count: int, seconds: float) -> Iterator[int]:
    for number in range(count):
        clock[0] += seconds
        yield number


class Sized:
    def __init__(self, items: Iterator[int], count: int) -> None:
        self.items, self.count = items, count

    def __iter__(self) -> Iterator[int]:
        return self.items

    def __len__(self) -> int:
        return self.count


def test_a_file_gets_a_line_every_ten_seconds(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(sys, "stderr", file)
    assert list(progress_bar(Sized(steps(clock, 12, 3.0), 12), "evaluate", "batch")) == list(range(12))
    lines = file.getvalue().splitlines()
    assert len(lines) == 3
    assert "\r" not in file.getvalue()
    assert lines[0].startswith("evaluate: 4/12 batch, 00:12<00:24")
    file.truncate(0)
    list(progress_bar(iter(range(5)), "check", "image"))  # soon done: nothing to tell
    assert file.getvalue().strip("\0") == ""


def test_a_line_has_what_a_bar_has_and_goes_on_where_a_run_did(clock: list[float]) -> None:
    file = io.StringIO()
    lines = ProgressLines(file, 100, "train", "it", start=50)
    lines.set_postfix_str("loss 1.5", refresh=False)
    clock[0] += 20
    lines.update()
    lines.write("evaluation at iteration 51", file=lines.fp)
    lines.close()
    assert file.getvalue().splitlines() == ["train: 51/100 it, 00:20<16:20, loss 1.5", "evaluation at iteration 51"]


def test_a_terminal_gets_a_bar_that_is_gone_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert list(progress_bar(range(3), "check", "image")) == [0, 1, 2]
    assert terminal.getvalue().count("\r") > 1
    assert "check" in terminal.getvalue()
    assert terminal.getvalue().rpartition("\r")[2] == ""


def test_quiet_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    be_quiet()
    assert list(progress_bar(range(3), "check", "image")) == [0, 1, 2]
    assert terminal.getvalue() == ""


def test_a_notebook_gets_tqdms_bar_for_notebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    class ZMQInteractiveShell:
        pass

    made = []

    class Bar(tqdm.tqdm):  # type: ignore[type-arg]
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            made.append(settings["desc"])
            super().__init__(*arguments, **settings)

    module: Any = ModuleType("IPython")
    module.get_ipython = ZMQInteractiveShell
    auto: Any = ModuleType("tqdm.auto")
    auto.tqdm = Bar
    monkeypatch.setitem(sys.modules, "IPython", module)
    monkeypatch.setitem(sys.modules, "tqdm.auto", auto)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    open_bar(3, "train", "it").close()
    assert made == ["train"]
