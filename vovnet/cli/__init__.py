"""The command ``vovnet``: it parses the arguments, calls the rooms' public functions and prints. Nobody imports it."""

from __future__ import annotations

import sys

import typer

from vovnet.cli import data, demo_page, detectors, evaluation, export, models, prediction, runs, system, web, weights
from vovnet.errors import run_command

app = typer.Typer(
    name="vovnet",
    help="Train, evaluate and use VoVNet detectors.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
for group in (detectors, evaluation, prediction, demo_page, data, models, export, web, weights, runs, system):
    app.add_typer(group.commands)


def main() -> None:
    """Run the command. Wrong input ends it with one line and a non-zero exit code, a defect with a traceback."""
    run_command(app, sys.argv[1:] or ["--help"])
