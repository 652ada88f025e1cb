"""Options of ``evaluate`` and ``predict`` that change a detector for one run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from vovnet.results.merging import MergeRule
    from vovnet.results.run_options import RunOptions

Size = Annotated[
    int | None, typer.Option("--size", min=1, help="Resize images to this short side. Default: the detector's own.")
]
MaxSize = Annotated[
    int | None,
    typer.Option("--max-size", min=1, help="… but to this long side at most. Default: in proportion to --size."),
]
MaxDetections = Annotated[
    int | None,
    typer.Option("--max-detections", min=1, help="Limit of detections of an image, or of a tile. Default: its own."),
]
Score = Annotated[
    float | None,
    typer.Option("--score", min=0, max=1, help="Drop detections up to this score. Default: the detector's own."),
]
Nms = Annotated[
    float | None,
    typer.Option("--nms", min=0, max=1, help="IoU from which two detections are one. Default: the detector's own."),
]
Tile = Annotated[
    int | None, typer.Option("--tile", min=32, help="Cut images into tiles with sides of this many pixels.")
]
Overlap = Annotated[float, typer.Option("--overlap", min=0, max=0.9, help="Share of a tile that the next one repeats.")]
TileFullImage = Annotated[
    bool, typer.Option("--tile-full-image", help="Detect in the whole image, too, for objects larger than the overlap.")
]
Merge = Annotated[
    str,
    typer.Option("--merge", help="Rule for objects in several tiles: auto, nms (IoU 0.5), or nmm (SAHI's default)."),
]
Labels = Annotated[str, typer.Option("--labels", help="Names in drawings: auto (those that can be read), all or none.")]
BatchSize = Annotated[
    int, typer.Option("--batch-size", min=1, help="Images, or tiles, that are computed at a time; for GPUs.")
]


def run_options(
    size: int | None,
    max_size: int | None,
    max_detections: int | None,
    score: float | None,
    nms: float | None,
    tile: int | None,
    overlap: float,
    tile_full_image: bool,
    merge: str,
) -> RunOptions:
    """Return what ``evaluate`` and ``predict`` change of a detector; they check it."""
    return {
        "size": size,
        "max_size": max_size,
        "max_detections": max_detections,
        "score": score,
        "nms": nms,
        "tile": tile,
        "overlap": overlap,
        "tile_full_image": tile_full_image,
        "merge": cast("MergeRule", merge),
    }
