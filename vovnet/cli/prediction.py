"""The command that detects in images, or classifies them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from vovnet.cli.options import (
    AnyWeights,
    Device,
    Fuse,
    MaxPixels,
    Output,
    Overwrite,
    Quiet,
    cpu_only,
    device_for,
    fused_if,
    home_path,
)
from vovnet.cli.run_settings import (
    BatchSize,
    Labels,
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
from vovnet.errors import InputError

if TYPE_CHECKING:
    import torch

    from vovnet.results.classes import ClassScore
    from vovnet.results.labels import LabelMode
    from vovnet.results.run_options import RunOptions
    from vovnet.results.thresholds import Threshold

commands = typer.Typer()


@commands.command()
def predict(
    images: Annotated[
        list[str],
        typer.Argument(help="Images, folders of them, patterns, video files, camera:0, or addresses (rtsp://…)."),
    ],
    weights: AnyWeights,
    output: Output = Path("predictions"),
    folder: Annotated[
        bool, typer.Option("--folder", help="The arguments are folders; they are known without it.")
    ] = False,
    threshold: Annotated[
        str,
        typer.Option(
            "--threshold",
            help="Lowest score that is drawn and counted; or the output of 'vovnet evaluate', for each class's own.",
        ),
    ] = "0.5",
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
    labels: Labels = "auto",
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", help="Write labels to correct, too: coco, yolo or labelme. May be repeated."),
    ] = None,
    every: Annotated[int, typer.Option("--every", min=1, help="Of a video, take every N-th frame.")] = 1,
    max_frames: Annotated[int | None, typer.Option("--max-frames", min=1, help="End a video after N frames.")] = None,
    max_pixels: MaxPixels = None,
    quiet: Quiet = False,
) -> None:
    """Detect objects in images (OUT/STEM.png, OUT/STEM.json), or print the classes that a classifier sees in them."""
    from vovnet.export.runtime import is_exported
    from vovnet.images.arguments import image_arguments
    from vovnet.results.thresholds import threshold_argument
    from vovnet.terminal.streams import say

    lowest = threshold_argument(threshold)
    paths, videos = image_arguments(images, say)
    if folder and (files := [one for one in images if not home_path(one).is_dir()]):
        raise InputError(f"--folder: '{files[0]}' is no folder")
    mode = cast("LabelMode", labels)
    options = run_options(size, max_size, max_detections, score, nms, tile, overlap, tile_full_image, merge)
    if is_exported(weights):
        cpu_only(device, fuse)
        if videos:
            raise InputError(f"{videos[0]}: videos need the detector's folder, not an exported file")
        _predict_exported(weights, paths, output, lowest, overwrite, max_pixels, mode, formats or [], options)
        return
    from vovnet.checkpoints.places import is_torchvision
    from vovnet.classification import is_classifier

    place = device_for(device, fuse)
    if not is_torchvision(weights) and is_classifier(weights):
        if videos:
            raise InputError(f"{videos[0]}: videos need a detector, and '{weights}' is a classifier")
        _classify(weights, paths, place, fuse, max_pixels)
        return
    from vovnet.detection.detecting.sharing import shared_output
    from vovnet.detection.prediction.predictor import predict_files, predict_videos
    from vovnet.hub import load_detector

    with shared_output(output, overwrite=overwrite, device=place):
        detector = fused_if(fuse, load_detector(weights))
        if paths:
            predict_files(
                detector,
                paths,
                output,
                lowest,
                max_pixels=max_pixels,
                device=place,
                batch_size=batch_size,
                labels=mode,
                formats=formats or [],
                **options,
            )
        if videos:
            predict_videos(
                detector,
                videos,
                output,
                lowest,
                every=every,
                max_frames=max_frames,
                device=place,
                batch_size=batch_size,
                labels=mode,
                **options,
            )


def _predict_exported(
    file: str,
    paths: list[Path],
    output: Path,
    threshold: Threshold,
    overwrite: bool,
    max_pixels: int | None,
    labels: LabelMode,
    formats: list[str],
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
        predict_exported(
            model,
            paths,
            output,
            threshold,
            tiling=settings.tiling,
            max_pixels=max_pixels,
            labels=labels,
            formats=formats,
        )


def _classify(weights: str, paths: list[Path], device: torch.device, fuse: bool, max_pixels: int | None) -> None:
    from vovnet.classification import classify_files, load_classifier

    model = fused_if(fuse, load_classifier(weights)).to(device)
    _print_classes(classify_files(model, paths, max_pixels=max_pixels))


def _print_classes(found: Iterable[tuple[Path, list[ClassScore]]]) -> None:
    from vovnet.terminal.text import printable

    for path, classes in found:
        typer.echo(printable(f"{path}: " + ", ".join(f"{one['label']} {one['score']:.3f}" for one in classes)))
