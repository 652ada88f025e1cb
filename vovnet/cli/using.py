"""Commands that use detectors: on data whose truth is known, and on images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vovnet.cli.options import (
    Annotations,
    AnyWeights,
    Device,
    Fuse,
    Images,
    MaxPixels,
    Output,
    Overwrite,
    Weights,
    cpu_only,
    device_for,
    fused_if,
)
from vovnet.cli.run_settings import (
    BatchSize,
    MaxDetections,
    MaxSize,
    Merge,
    Nms,
    Overlap,
    Score,
    Size,
    Tile,
    TileFullImage,
    run_options,
)

if TYPE_CHECKING:
    import torch

    from vovnet.results.classes import ClassScore
    from vovnet.results.run_options import RunOptions

commands = typer.Typer()


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
    size: Size = None,
    max_size: MaxSize = None,
    max_detections: MaxDetections = None,
    score: Score = None,
    nms: Nms = None,
    tile: Tile = None,
    overlap: Overlap = 0.2,
    tile_full_image: TileFullImage = False,
    merge: Merge = "auto",
    batch_size: BatchSize = 1,
    max_pixels: MaxPixels = None,
) -> None:
    """Evaluate a detector: COCO's twelve metrics, AP per class, COCO result files, precision-recall plot."""
    from vovnet.detection import distributed, format_metrics
    from vovnet.detection import evaluate as evaluate_detector
    from vovnet.detection.detecting.sharing import shared_output
    from vovnet.detection.evaluation.evaluator import evaluation_dataset
    from vovnet.detection.export import exported_detector
    from vovnet.export.runtime import is_exported
    from vovnet.hub import load_detector
    from vovnet.terminal.streams import say

    options = run_options(size, max_size, max_detections, score, nms, tile, overlap, tile_full_image, merge)
    exported = is_exported(weights)
    if exported:
        cpu_only(device, fuse)
    place = device_for("cpu" if exported else device, fuse)
    with shared_output(output, overwrite=overwrite, device=place, timeout=timeout):
        detector = exported_detector(weights) if exported else load_detector(weights)
        dataset = evaluation_dataset(detector, images, annotations, max_pixels=max_pixels)
        if dataset.dropped_summary and distributed.rank() == 0:
            say(f"data left out: {dataset.dropped_summary}")
        detector = fused_if(fuse, detector)
        metrics = evaluate_detector(
            detector,
            dataset,
            output,
            device=place,
            batch_size=batch_size,
            workers=workers,
            timeout=timeout,
            progress=True,
            **options,
        )
        if distributed.rank() == 0:
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
    size: Size = None,
    max_size: MaxSize = None,
    max_detections: MaxDetections = None,
    score: Score = None,
    nms: Nms = None,
    tile: Tile = None,
    overlap: Overlap = 0.2,
    tile_full_image: TileFullImage = False,
    merge: Merge = "auto",
    batch_size: BatchSize = 1,
    max_pixels: MaxPixels = None,
) -> None:
    """Detect objects in images (OUT/STEM.png, OUT/STEM.json), or print the classes that a classifier sees in them."""
    from vovnet.export.runtime import is_exported
    from vovnet.images.folder import list_images

    def report(line: str) -> None:
        typer.echo(line, err=True)

    paths = [path for entry in images for path in (list_images(entry, report) if folder else [entry])]
    options = run_options(size, max_size, max_detections, score, nms, tile, overlap, tile_full_image, merge)
    if is_exported(weights):
        cpu_only(device, fuse)
        _predict_exported(weights, paths, output, threshold, overwrite, max_pixels, options)
        return
    from vovnet.checkpoints.places import is_torchvision
    from vovnet.classification import is_classifier

    place = device_for(device, fuse)
    if not is_torchvision(weights) and is_classifier(weights):
        _classify(weights, paths, place, fuse, max_pixels)
        return
    from vovnet.detection.detecting.sharing import shared_output
    from vovnet.detection.prediction.predictor import predict_files
    from vovnet.hub import load_detector

    with shared_output(output, overwrite=overwrite, device=place):
        detector = fused_if(fuse, load_detector(weights))
        predict_files(
            detector, paths, output, threshold, device=place, max_pixels=max_pixels, batch_size=batch_size, **options
        )


def _predict_exported(
    file: str,
    paths: list[Path],
    output: Path,
    threshold: float,
    overwrite: bool,
    max_pixels: int | None,
    options: RunOptions,
) -> None:
    from vovnet.export.prediction import classify_exported, predict_exported
    from vovnet.export.runtime import open_exported
    from vovnet.folders.claim import claimed_folder
    from vovnet.results.run_options import RunSettings

    settings = RunSettings(**options)
    settings.check_exported()
    model = open_exported(file)
    if model.metadata.kind == "classifier":
        _print_classes(classify_exported(model, paths, max_pixels=max_pixels))
        return
    with claimed_folder(output, overwrite=overwrite):
        predict_exported(model, paths, output, threshold, tiling=settings.tiling, max_pixels=max_pixels)


def _classify(weights: str, paths: list[Path], device: torch.device, fuse: bool, max_pixels: int | None) -> None:
    from vovnet.classification import classify_files, load_classifier

    model = fused_if(fuse, load_classifier(weights)).to(device)
    _print_classes(classify_files(model, paths, max_pixels=max_pixels))


def _print_classes(found: Iterable[tuple[Path, list[ClassScore]]]) -> None:
    from vovnet.terminal.text import printable

    for path, classes in found:
        typer.echo(printable(f"{path}: " + ", ".join(f"{one['label']} {one['score']:.3f}" for one in classes)))
