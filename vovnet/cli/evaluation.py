"""The command that evaluates a detector on data whose truth is known."""

from __future__ import annotations

import json
from shlex import quote
from typing import TYPE_CHECKING, Annotated, cast

import typer

from vovnet.cli.options import (
    AsJson,
    Device,
    Fuse,
    MaxPixels,
    OptionalAnnotations,
    OptionalData,
    OptionalImages,
    Output,
    Overwrite,
    Quiet,
    Split,
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
    from vovnet.detection.config.fields import Backend

commands = typer.Typer()


@commands.command()
def evaluate(
    weights: Weights,
    output: Output,
    data: OptionalData = None,
    images: OptionalImages = None,
    annotations: OptionalAnnotations = None,
    split: Split = None,
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
    backend: Annotated[
        str, typer.Option("--backend", help="Program for COCO's numbers: pycocotools, or faster (faster-coco-eval).")
    ] = "pycocotools",
    max_pixels: MaxPixels = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate a detector: COCO's metrics, best thresholds, confusions, kinds of errors, and a page with all of it.

    DATA is what training takes; of its splits val is taken, or else test. Without DATA it is the run's validation data.
    """
    from vovnet.detection import distributed, format_metrics
    from vovnet.detection import evaluate as evaluate_detector
    from vovnet.detection.detecting.sharing import shared_output
    from vovnet.detection.evaluation.backends import check_backend
    from vovnet.detection.evaluation.sources import evaluation_dataset, evaluation_sources
    from vovnet.detection.export import exported_detector
    from vovnet.export.runtime import is_exported
    from vovnet.hub import load_detector
    from vovnet.results.run_options import RunSettings
    from vovnet.terminal.streams import say

    check_backend(backend, "--backend")
    options = run_options(size, max_size, max_detections, score, nms, tile, overlap, tile_full_image, merge)
    exported = is_exported(weights)
    if exported:
        cpu_only(device, fuse)
    place = device_for("cpu" if exported else device, fuse)
    with shared_output(output, overwrite=overwrite, device=place, timeout=timeout):
        detector = exported_detector(weights) if exported else load_detector(weights)
        sources = evaluation_sources(data, images, annotations, split=split, run=weights)
        dataset = evaluation_dataset(detector, sources, max_pixels=max_pixels)
        if dataset.dropped_summary and distributed.rank() == 0:
            say(f"data left out: {dataset.dropped_summary}")
        detector = fused_if(fuse, detector)
        metrics = evaluate_detector(
            detector,
            dataset,
            output,
            device=place,
            batch_size=batch_size,
            backend=cast("Backend", backend),
            workers=workers,
            timeout=timeout,
            progress=True,
            **options,
        )
        if distributed.rank() == 0:
            typer.echo(json.dumps(metrics, indent=2) if as_json else format_metrics(metrics))
            if "best" in metrics:
                given = [weights, "--threshold", str(output), *RunSettings(**options).arguments]
                say(f"to count: vovnet predict IMAGES --weights {' '.join(map(quote, given))}")
