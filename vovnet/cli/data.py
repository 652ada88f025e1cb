"""Commands that check data and convert it."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vovnet.cli.options import (
    AsJson,
    MaxPixels,
    OptionalAnnotations,
    OptionalData,
    OptionalImages,
    Overwrite,
    Quiet,
    Split,
    home_path,
)
from vovnet.errors import InputError

commands = typer.Typer()


class DataFormat(StrEnum):
    """The formats that convert-data writes."""

    coco = "coco"
    yolo = "yolo"
    voc = "voc"


Link = Annotated[bool, typer.Option("--link", help="Hard links to the images in place of copies.")]


@commands.command("check-data")
def check_data(
    data: OptionalData = None,
    images: OptionalImages = None,
    annotations: OptionalAnnotations = None,
    split: Split = None,
    fix: Annotated[
        Path | None, typer.Option("--fix", parser=home_path, metavar="OUT", help="Write a mended copy to this folder.")
    ] = None,
    link: Link = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what --fix wrote before.")] = False,
    decode: Annotated[bool, typer.Option("--decode/--no-decode", help="Decode every image (slow).")] = True,
    max_pixels: MaxPixels = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> None:
    """Print what is wrong with a dataset, what it consists of, and what a recipe should say. Exit code 1: errors."""
    from vovnet.detection.conversion.fixing import fix_data
    from vovnet.detection.data.dataset_check import check_dataset
    from vovnet.detection.data.sources import named_data

    title, splits = named_data(data, images, annotations, split)
    if fix is not None:
        if as_json:
            raise InputError(f"--json: not with --fix, which lists its changes in {fix}/changes.txt")
        _print(fix_data(title, splits, fix, link=link, overwrite=overwrite, max_pixels=max_pixels, progress=True))
        return
    found = check_dataset(splits, decode=decode, max_pixels=max_pixels, progress=True)
    if as_json:
        typer.echo(json.dumps({"format": title, **found.to_json()}, indent=2))
    else:
        _print(f"format       {title}\n{found.text()}")
    raise typer.Exit(0 if found.ok else 1)


@commands.command("convert-data")
def convert_data(
    data: Annotated[Path, typer.Argument(parser=home_path, metavar="IN", help="Folder or file of labels.")],
    output: Annotated[Path, typer.Argument(parser=home_path, metavar="OUT", help="Folder for the new dataset.")],
    to: Annotated[DataFormat, typer.Option("--to", help="Format to write.")],
    split: Split = None,
    link: Link = False,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
) -> None:
    """Write labels of any format, and their images, as COCO JSON, YOLO or PASCAL VOC."""
    from vovnet.detection.conversion.convert import convert_data as convert

    _print(convert(data, output, to.value, split=split, link=link, overwrite=overwrite, progress=True))


def _print(text: str) -> None:
    from vovnet.terminal.text import printable

    typer.echo("\n".join(map(printable, text.splitlines())))
