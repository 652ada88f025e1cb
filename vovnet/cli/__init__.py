"""The command ``vovnet``: it parses the arguments, calls the rooms' public functions and prints. Nobody imports it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from vovnet.cli import data, demo_page, detectors, evaluation, export, models, prediction, runs, system, web, weights
from vovnet.errors import run_command

app = typer.Typer(
    name="vovnet",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done; 1 an error, or something wrong in what was checked; 2 a command line that cannot be "
    "read; 124 the end of --time-limit; 128 + N the signal N, such as 130 for Ctrl-C.",
)
for group in (detectors, evaluation, prediction, demo_page, data, models, export, web, weights, runs, system):
    app.add_typer(group.commands)


def _print_version(asked: bool) -> None:
    if asked:
        from vovnet.environment import installed_version

        typer.echo(f"vovnet {installed_version()}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Train, evaluate and use VoVNet detectors."""


def main() -> None:
    """Run the command. Wrong input ends it with one line and a non-zero exit code, a defect with a traceback."""
    run_command(app, sys.argv[1:] or ["--help"])
