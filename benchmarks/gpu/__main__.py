"""Everything that needs a GPU, in one command: tests, times, memory, and how far the kernels are from their floors.

    make gpu                        # or: python -m benchmarks.gpu
    make gpu GPU_ARGS=--cpu         # a small case that needs no GPU: every section starts

It needs torch, torchvision, timm, safetensors and huggingface_hub, and nvcc and g++ for the kernels. It writes one
file, anew after every step, so that a kill loses one step.
"""

from __future__ import annotations

import argparse
import importlib.util
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.report import Outcome, render
from benchmarks.gpu.running import run_sections
from benchmarks.gpu.sections import SECTIONS

NEEDED = ("torch", "torchvision", "timm", "safetensors", "huggingface_hub")
RESERVE_SECONDS = 10
"""Seconds kept for work outside the sections: imports, the last report, and processes that end slowly."""
HOW_ON_CPU = "the small case for the CPU: make gpu GPU_ARGS=--cpu"


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=(__doc__ or "").split("\n")[0])
    options.add_argument("--cpu", action="store_true", help="a small case on the CPU; its figures mean nothing")
    options.add_argument("--output", type=Path, default=Path("gpu_report.md"), help="the report")
    options.add_argument("--overwrite", action="store_true", help="replace a report that is there")
    options.add_argument("--minutes", type=float, default=9.0, help="for everything together")
    names = [section.name for section in SECTIONS]
    options.add_argument("--sections", nargs="+", choices=names, default=names, help="run only these")
    return options


def missing(cpu: bool) -> str:
    """Return what is missing, in one line, or an empty text."""
    absent = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if absent:
        return f"make gpu needs {', '.join(absent)} in {sys.executable}: pip install {' '.join(absent)}"
    if cpu:
        return ""
    import torch

    if not torch.cuda.is_available() or torch.version.cuda is None:
        return f"make gpu needs an NVIDIA GPU, and PyTorch {torch.__version__} sees none here; {HOW_ON_CPU}"
    if not hasattr(torch.backends.cudnn, "conv"):
        return f"make gpu needs PyTorch 2.9 or later, got {torch.__version__}: pip install -U torch"
    return ""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and run.

    Raises:
        SystemExit: something is missing, or the report would replace another one.
    """
    start = time.monotonic()
    options = parser().parse_args(arguments)
    if not options.output.absolute().parent.is_dir():
        sys.exit(f"error: --output {options.output}: its folder does not exist; make it, or name another")
    if options.output.exists() and not options.overwrite:
        sys.exit(f"error: --output {options.output} exists already: name another file, or add --overwrite")
    if lack := missing(options.cpu):
        sys.exit(f"error: {lack}")
    from vovnet.files import write_text

    sections = [section for section in SECTIONS if section.name in options.sections]
    title = f"GPU report of {time.strftime('%Y-%m-%d %H:%M')}" + (": a small case on the CPU" if options.cpu else "")
    outcomes: dict[str, Outcome] = {}

    def progress(name: str, outcome: Outcome) -> None:
        known = outcomes.get(name)
        if known is None or len(known.records) != len(outcome.records) or known.state != outcome.state:
            outcomes[name] = outcome
            write_text(options.output, render(title, sections, outcomes))
        if outcome.state != "running":
            print(f"{name}: {outcome.state} after {outcome.seconds:.0f} of {outcome.limit:.0f} s", flush=True)

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the section's processes on the way out
    with tempfile.TemporaryDirectory(prefix="vovnet-gpu-") as folder:
        seconds = 60 * options.minutes - RESERVE_SECONDS - (time.monotonic() - start)
        run_sections(sections, Path(folder), seconds, progress, cpu=options.cpu)
    print(f"{options.output}: written after {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("stopped by Ctrl-C; the report has what was finished")
