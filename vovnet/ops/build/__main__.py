"""``python -m vovnet.ops.build``: compile the operators ahead of time, and report the resources of CUDA kernels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vovnet.errors import InputError, run_command

if TYPE_CHECKING:
    from vovnet.ops.build.compiler import Build
    from vovnet.ops.build.report import KernelReport

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def build_operators(
    cuda: Annotated[
        bool, typer.Option("--cuda", help="Build the CUDA operators instead; this needs nvcc, but no GPU.")
    ] = False,
    arch: Annotated[
        str | None, typer.Option("--arch", help="Compute capabilities such as 8.0,9.0+PTX; default: all.")
    ] = None,
    report: Annotated[Path | None, typer.Option("--report", help="JSON file for registers, spills, occupancy.")] = None,
) -> None:
    """Compile the operators for the CPU, or for every supported GPU, into the cache, where they need no compiler."""
    if cuda:
        _build_cuda(arch, report)
        return
    if arch is not None or report is not None:
        raise InputError("--arch and --report are for the CUDA operators: add --cuda")
    # Torch is imported after the arguments have been checked.
    from vovnet.ops.build.cache import build_once
    from vovnet.ops.build.sources import CPU, NO_GPU

    made = build_once(CPU, NO_GPU)
    if made.left_out:
        typer.echo(f"left out, because the compiler does not know their instructions: {', '.join(made.left_out)}")
    _conclude(made, [])


def _build_cuda(arch: str | None, report: Path | None) -> None:
    from vovnet.ops.build.sources import parse_targets

    targets = parse_targets(arch)
    if report is not None and not report.resolve().parent.is_dir():
        raise InputError(
            f"--report {report}: expected a file in a folder that exists, but {report.parent} does not exist"
        )

    from vovnet.ops.build import report as reports
    from vovnet.ops.build.cache import build_once
    from vovnet.ops.build.sources import CUDA
    from vovnet.ops.build.toolchain import BuildError

    made = build_once(CUDA, targets)
    try:
        entries = reports.kernel_reports(made)
    except OSError as error:
        raise BuildError(f"{made.path} cannot be loaded ({error}): remove {made.path.parent}") from error
    if report is not None:
        reports.write_report(report, entries, made.warnings)
    typer.echo(reports.table(entries))
    _conclude(made, entries)


def _conclude(made: Build, entries: list[KernelReport]) -> None:
    """Print what was built and where. A warning or a defective kernel is an error."""
    from vovnet.ops.build import report as reports
    from vovnet.ops.build.toolchain import BuildError

    typer.echo(f"{len(made.warnings)} warnings; built for {made.targets.words} in {made.seconds:.0f} s: {made.path}")
    if found := reports.defects(entries, made.warnings):
        raise BuildError(f"the build has {len(found)} defects: {'; '.join(found[:5])}")


def main() -> None:
    """Run the command. Wrong input ends it with one line and a non-zero exit code, a defect with a traceback."""
    run_command(app, sys.argv[1:], "python -m vovnet.ops.build")


if __name__ == "__main__":
    main()
