"""Commands about what runs have left: comparing them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vovnet.cli.options import AsJson, home_path

commands = typer.Typer()


@commands.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.")],
    chart: Annotated[
        Path | None,
        typer.Option("--chart", parser=home_path, metavar="FILE", help="Also draw losses, AP, time and memory."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs: differences of their recipes, AP, time and memory side by side."""
    from vovnet.detection.runs.comparison import compare_runs

    comparison = compare_runs(runs)
    typer.echo(json.dumps(comparison.to_json(), indent=2) if as_json else comparison.table())
    if chart is not None:
        from vovnet.detection.runs.chart import draw_comparison

        draw_comparison(comparison, chart)
        typer.echo(f"drawn: {chart}", err=True)
