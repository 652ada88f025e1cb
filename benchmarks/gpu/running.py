"""Run the sections one after the other, each in processes of its own, within a total time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks.gpu.records import read
from benchmarks.gpu.report import Outcome, end_of
from benchmarks.gpu.sections import Section

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 1.0
CPU_PATIENCE = 3
"""How many times as long a step may take on the CPU, which may have other work."""
Progress = Callable[[str, Outcome], None]
"""Is told a section's name and what is known of it so far."""


def run_sections(
    sections: Sequence[Section], folder: Path, seconds: float, progress: Progress, *, cpu: bool = False
) -> None:
    """Run all sections.

    Args:
        sections: in this order.
        folder: for records and logs; must exist and be empty.
        seconds: for all sections together. Each has its share of what is left, so that a slow one takes nothing from
            those behind it, and a fast one leaves them more.
        progress: called while a section runs, and when it has ended.
        cpu: the small case on the CPU.
    """
    end = time.monotonic() + seconds
    for place, section in enumerate(sections):
        shares = sum(later.share for later in sections[place:])
        limit = max(end - time.monotonic(), 0) * section.share / shares
        outcome = _run(section, folder, limit, lambda outcome, name=section.name: progress(name, outcome), cpu)  # type: ignore[misc]
        progress(section.name, outcome)


def _run(section: Section, folder: Path, limit: float, progress: Callable[[Outcome], None], cpu: bool) -> Outcome:
    """Run a section, in a new process behind every step that broke the one before."""
    path, log = folder / f"{section.name}.jsonl", folder / f"{section.name}.log"
    start = time.monotonic()
    patience = section.step_seconds * (CPU_PATIENCE if cpu else 1)
    command = [sys.executable, "-m", "benchmarks.gpu.child", section.module, str(path), str(patience)]

    def outcome(state: str, text: str = "") -> Outcome:
        return Outcome(state, time.monotonic() - start, limit, read(path), end_of(text))

    while True:
        known = len(read(path))
        with _process([*command, *(["--cpu"] if cpu else [])], log) as process:
            code = _wait(process, start + limit, lambda: progress(outcome("running")))
        said = log.read_text(encoding="utf-8", errors="replace")
        if code is None:
            return outcome("**ran out of time**", said)
        if code == 0:
            bad = any(record.state in ("failed", "started") for record in read(path).values())
            return outcome("**with failures**", said) if bad else outcome("complete")
        if len(read(path)) == known:
            return outcome(f"**its process ended with exit code {code}**", said)


def _wait(process: subprocess.Popen[bytes], end: float, progress: Callable[[], None]) -> int | None:
    """Return the exit code, or None if the time has come."""
    while (left := end - time.monotonic()) > 0:
        try:
            return process.wait(min(left, POLL_SECONDS))
        except subprocess.TimeoutExpired:
            progress()
    return process.poll()


@contextmanager
def _process(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process in a session of its own; at the end nothing of it is left, whatever it has started."""
    environment = {name: value for name, value in os.environ.items() if name not in ("VOVNET_OPS", "LOCAL_RANK")}
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):  # a process may hang in the driver; the next section has its own
            process.wait(5)
