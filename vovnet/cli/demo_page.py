"""The command that serves a page on which others try detectors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vovnet.cli.options import Device, Fuse, home_path
from vovnet.cli.run_settings import (
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

commands = typer.Typer()


@commands.command()
def demo(
    weights: Annotated[
        list[str],
        typer.Option(
            "--weights",
            "-w",
            help="What --weights of `vovnet predict` takes. May be repeated: visitors choose among these alone.",
        ),
    ],
    title: Annotated[str, typer.Option("--title", help="The heading of the page.")] = "Detect objects",
    host: Annotated[
        str | None,
        typer.Option("--host", help="0.0.0.0 lets every computer of the network in. Default: this computer alone."),
    ] = None,
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="Default: the first free one from 7860 on.")
    ] = None,
    share: Annotated[
        bool, typer.Option("--share", help="Make an address of Gradio's service, which everybody can reach.")
    ] = False,
    examples: Annotated[
        Path | None,
        typer.Option("--examples", parser=home_path, metavar="FOLDER", help="Images to try. Default: drawn shapes."),
    ] = None,
    threshold: Annotated[
        float, typer.Option("--threshold", min=0, max=1, help="Where the slider of scores stands at first.")
    ] = 0.5,
    max_size_mb: Annotated[float, typer.Option("--max-size-mb", help="Largest image file, in megabytes.")] = 10,
    max_pixels: Annotated[int, typer.Option("--max-pixels", help="Largest image, in pixels.")] = 25_000_000,
    rate: Annotated[int, typer.Option("--rate", help="Images that a client may have looked at in a minute.")] = 30,
    max_images: Annotated[int, typer.Option("--max-images", help="Images that a visitor sees at a time.")] = 8,
    export_space: Annotated[
        Path | None,
        typer.Option(
            "--export-space",
            parser=home_path,
            metavar="OUT",
            help="Do not serve, but write what Hugging Face runs as a Space: app.py, requirements.txt, README.md.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the files in OUT.")] = False,
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
) -> None:
    """Serve a page on which others drop images, see what detectors find, and download the counts."""
    from vovnet.detection.demo.bounds import Bounds
    from vovnet.detection.demo.opening import open_content
    from vovnet.detection.demo.page import gradio
    from vovnet.detection.demo.server import serve
    from vovnet.detection.demo.space import export_demo

    gradio()  # before detectors are loaded
    bounds = Bounds(max_size_mb, max_pixels, rate, max_images)
    options = run_options(size, max_size, max_detections, score, nms, tile, overlap, tile_full_image, merge)
    content = open_content(
        weights,
        title=title,
        examples=examples,
        bounds=bounds,
        threshold=threshold,
        device="cpu" if export_space else device,
        fuse=fuse,
        **options,
    )
    if export_space:
        typer.echo(export_demo(content, weights, export_space, overwrite=overwrite, fuse=fuse, **options))
    else:
        serve(content, host=host, port=port, share=share)
