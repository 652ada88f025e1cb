"""Commands that train, evaluate and use detectors."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vovnet.cli.options import (
    Annotations,
    AnyWeights,
    AutoResume,
    Device,
    Fuse,
    Images,
    MaxPixels,
    Output,
    Overwrite,
    OwnTransforms,
    RecipeOrData,
    Resume,
    ShowBatch,
    TimeLimit,
    Weights,
    cpu_only,
    device_for,
    fused_if,
)

if TYPE_CHECKING:
    import torch

    from vovnet.results.classes import ClassScore

commands = typer.Typer()


@commands.command()
def quickstart(output: Output = Path("runs/quickstart"), overwrite: Overwrite = False) -> None:
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


@commands.command()
def evaluate(
    weights: Weights,
    images: Images,
    annotations: Annotations,
    output: Output,
    overwrite: Overwrite = False,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Number of loader processes.")] = 2,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0, help="Seconds to wait for a batch from them; 0 waits forever.")
    ] = 600,
    device: Device = None,
    fuse: Fuse = False,
    max_pixels: MaxPixels = None,
) -> None:
    """Evaluate a detector: COCO's twelve metrics, AP per class, COCO result files, precision-recall plot."""
    from vovnet.detection import evaluate as evaluate_detector
    from vovnet.detection import format_metrics
    from vovnet.detection.evaluation.evaluator import evaluation_dataset
    from vovnet.detection.export import exported_detector
    from vovnet.export.runtime import is_exported
    from vovnet.folders.claim import claimed_folder
    from vovnet.hub import load_detector
    from vovnet.terminal.streams import say

    exported = is_exported(weights)
    if exported:
        cpu_only(device, fuse)
    place = device_for("cpu" if exported else device, fuse)
    with claimed_folder(output, overwrite=overwrite):
        detector = exported_detector(weights) if exported else load_detector(weights)
        dataset = evaluation_dataset(detector, images, annotations, max_pixels=max_pixels)
        if dataset.dropped_summary:
            say(f"data left out: {dataset.dropped_summary}")
        detector = fused_if(fuse, detector)
        metrics = evaluate_detector(
            detector, dataset, output, device=place, workers=workers, timeout=timeout, progress=True
        )
    typer.echo(format_metrics(metrics))


@commands.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Images.")],
    weights: AnyWeights,
    output: Output = Path("predictions"),
    folder: Annotated[bool, typer.Option("--folder", help="The arguments are folders of images.")] = False,
    threshold: Annotated[float, typer.Option("--threshold", min=0, max=1, help="Lowest score that is drawn.")] = 0.5,
    overwrite: Overwrite = False,
    device: Device = None,
    fuse: Fuse = False,
    max_pixels: MaxPixels = None,
) -> None:
    """Detect objects in images (OUT/STEM.png, OUT/STEM.json), or print the classes that a classifier sees in them."""
    from vovnet.export.runtime import is_exported
    from vovnet.images.folder import list_images

    def report(line: str) -> None:
        typer.echo(line, err=True)

    paths = [path for entry in images for path in (list_images(entry, report) if folder else [entry])]
    if is_exported(weights):
        cpu_only(device, fuse)
        _predict_exported(weights, paths, output, threshold, overwrite, max_pixels)
        return
    from vovnet.checkpoints.places import is_torchvision
    from vovnet.classification import is_classifier

    place = device_for(device, fuse)
    if not is_torchvision(weights) and is_classifier(weights):
        _classify(weights, paths, place, fuse, max_pixels)
        return
    from vovnet.detection.prediction.predictor import predict_files
    from vovnet.folders.claim import claimed_folder
    from vovnet.hub import load_detector

    with claimed_folder(output, overwrite=overwrite):
        predict_files(
            fused_if(fuse, load_detector(weights)), paths, output, threshold, device=place, max_pixels=max_pixels
        )


def _predict_exported(
    file: str, paths: list[Path], output: Path, threshold: float, overwrite: bool, max_pixels: int | None
) -> None:
    from vovnet.export.prediction import classify_exported, predict_exported
    from vovnet.export.runtime import open_exported
    from vovnet.folders.claim import claimed_folder

    model = open_exported(file)
    if model.metadata.kind == "classifier":
        _print_classes(classify_exported(model, paths, max_pixels=max_pixels))
        return
    with claimed_folder(output, overwrite=overwrite):
        predict_exported(model, paths, output, threshold, max_pixels=max_pixels)


def _classify(weights: str, paths: list[Path], device: torch.device, fuse: bool, max_pixels: int | None) -> None:
    from vovnet.classification import classify_files, load_classifier

    model = fused_if(fuse, load_classifier(weights)).to(device)
    _print_classes(classify_files(model, paths, max_pixels=max_pixels))


def _print_classes(found: Iterable[tuple[Path, list[ClassScore]]]) -> None:
    from vovnet.terminal.text import printable

    for path, classes in found:
        typer.echo(printable(f"{path}: " + ", ".join(f"{one['label']} {one['score']:.3f}" for one in classes)))
