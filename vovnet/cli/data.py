"""Commands that check data and convert it."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vovnet.cli.options import Annotations, Images, MaxPixels, Overwrite, home_path

commands = typer.Typer()


class DataFormat(StrEnum):
    """The formats that convert-data writes."""

    coco = "coco"
    yolo = "yolo"
    voc = "voc"


@commands.command("check-data")
def check_data(
    images: Images,
    annotations: Annotations,
    decode: Annotated[bool, typer.Option("--decode/--no-decode", help="Decode every image (slow).")] = True,
    max_pixels: MaxPixels = None,
) -> None:
    """Read a dataset and print a table of its errors. The exit code is 1 if there are any."""
    from vovnet.detection.data.validation import check_data as check

    report = check(images, annotations, decode=decode, max_pixels=max_pixels, progress=True)
    typer.echo(report.table())
    raise typer.Exit(0 if report.ok else 1)


@commands.command("convert-data")
def convert_data(
    data: Annotated[Path, typer.Argument(parser=home_path, metavar="IN", help="Folder or file of labels.")],
    output: Annotated[Path, typer.Argument(parser=home_path, metavar="OUT", help="Folder for the new dataset.")],
    to: Annotated[DataFormat, typer.Option("--to", help="Format to write.")],
    split: Annotated[str | None, typer.Option("--split", help="Convert this split alone.")] = None,
    link: Annotated[bool, typer.Option("--link", help="Hard links to the images in place of copies.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write labels of any format, and their images, as COCO JSON, YOLO or PASCAL VOC."""
    from vovnet.detection.conversion.convert import convert_data as convert
    from vovnet.terminal.text import printable

    text = convert(data, output, to.value, split=split, link=link, overwrite=overwrite, progress=True)
    typer.echo("\n".join(map(printable, text.splitlines())))
