"""Commands that train, evaluate and use detectors."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from vovnet.cli.options import (
    AutoResume,
    Device,
    Output,
    Overwrite,
    OwnTransforms,
    Quiet,
    RecipeOrData,
    Resume,
    ShowBatch,
    TimeLimit,
)

commands = typer.Typer()


@commands.command()
def quickstart(output: Output = Path("runs/quickstart"), overwrite: Overwrite = False, quiet: Quiet = False) -> None:
    """Generate a dataset of shapes, train a small Mask R-CNN on it, evaluate it, and draw its detections."""
    from vovnet.detection.quickstart import run_quickstart

    typer.echo(run_quickstart(output, overwrite=overwrite))


@commands.command()
def train(
    recipe: RecipeOrData,
    output: Output,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as solver.base_lr=0.01")] = None,
    resume: Resume = False,
    auto_resume: AutoResume = False,
    transforms: OwnTransforms = None,
    show_batch: ShowBatch = None,
    overwrite: Overwrite = False,
    device: Device = None,
    time_limit: TimeLimit = None,
    quiet: Quiet = False,
) -> None:
    """Train a detector. For several processes: torchrun -m vovnet.detection.train …"""
    from vovnet.detection import format_metrics
    from vovnet.detection import train as train_detector
    from vovnet.detection.training.claim import resume_mode
    from vovnet.detection.training.from_data import recipe_or_data

    mode = resume_mode(resume, auto_resume)
    start = partial(train_detector, transforms=transforms, show_batch=show_batch, time_limit=time_limit)
    values = recipe_or_data(recipe, overrides or [], output, resume=mode, device=device)
    metrics = start(values, output, resume=mode, overwrite=overwrite, device=device)
    if metrics:
        typer.echo(format_metrics(metrics))
    typer.echo(f"the run is in {output}; try: vovnet predict IMAGE --weights {output} --output predictions")
