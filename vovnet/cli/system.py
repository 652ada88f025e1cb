"""Commands about this machine: benchmarks, and a report for bug reports."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Annotated

import typer

from vovnet.cli.options import AsJson, Device, OptionalOutput, Overwrite, home_path

commands = typer.Typer()
benchmark = typer.Typer(help="Measure how fast networks run on this machine.")
commands.add_typer(benchmark, name="benchmark")


@benchmark.command("cpu")
def benchmark_cpu(
    cases: Annotated[list[str] | None, typer.Option("--case", help="One of the cases. Repeat it for several.")] = None,
    backends: Annotated[
        list[str] | None, typer.Option("--backend", "--contestant", help="One of the backends. Repeat it for several.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Every backend has a turn in each round.")] = 15,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Number of threads of each.")] = None,
    output: OptionalOutput = None,
    overwrite: Overwrite = False,
    huge_pages: Annotated[bool, typer.Option(help="Ask for transparent huge pages, for all backends.")] = True,
) -> None:
    """Time vovnet.fuse, PyTorch, torch.compile, ONNX Runtime and OpenVINO, interleaved, on backbones and a detector."""
    from vovnet.detection.cpu_benchmark import run_benchmark
    from vovnet.detection.cpu_benchmark.machine import restart_with_huge_pages
    from vovnet.folders.claim import claimed_folder

    if huge_pages:
        restart_with_huge_pages()
    with contextlib.nullcontext() if output is None else claimed_folder(output, overwrite=overwrite):
        run_benchmark(cases or [], backends or [], rounds, threads=threads, output=output, say=typer.echo)


@benchmark.command("table")
def benchmark_published_columns(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Runs, detectors' folders, ORG/NAME, or torchvision:NAME.")
    ],
    rounds: Annotated[int, typer.Option("--rounds", min=0, help="Turns of each detector; 0 measures no time.")] = 10,
    image: Annotated[
        Path | None, typer.Option("--image", parser=home_path, metavar="FILE", help="The image. Default: noise.")
    ] = None,
    device: Device = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", parser=home_path, metavar="FILE", help="Markdown file.")
    ] = None,
) -> None:
    """Print detectors in the published table's columns: training memory, inference time, box AP and mask AP."""
    from vovnet.detection.runs.published_table import benchmark_table

    benchmark_table(runs, rounds=rounds, image=image, device=device, output=output, say=typer.echo)


@commands.command()
def env(as_json: AsJson = False) -> None:
    """Print versions, devices, what is compiled and what is missing: a page to paste into a bug report."""
    from vovnet.environment import environment_report, environment_sections

    typer.echo(json.dumps(environment_sections(), indent=2) if as_json else environment_report())
