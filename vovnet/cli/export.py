"""The command that writes a detector or classifier as a file for another runtime."""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict, cast

import typer

from vovnet.cli.options import home_path
from vovnet.errors import InputError

if TYPE_CHECKING:
    from vovnet.detection.export.graph import Masks
    from vovnet.export.metadata import InputType, Precision
    from vovnet.export.writing import Format

commands = typer.Typer()


class _Options(TypedDict):
    """What detectors and classifiers have in common."""

    size: tuple[int, int] | None
    batch: int | None
    input: InputType
    precision: Precision


class _Format(StrEnum):
    onnx = "onnx"
    openvino = "openvino"
    pt2 = "pt2"
    torchscript = "torchscript"


class _Masks(StrEnum):
    none = "none"
    box = "box"
    image = "image"


class _Input(StrEnum):
    uint8 = "uint8"
    float32 = "float32"


class _Precision(StrEnum):
    fp32 = "fp32"
    fp16 = "fp16"
    bf16 = "bf16"


@commands.command("export")
def export_model(
    weights: Annotated[str, typer.Argument(help="What --weights of `vovnet predict` takes: a run, a name, …")],
    format: Annotated[_Format, typer.Option("--format", "-f", help="Which runtime the file is for.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", parser=home_path, metavar="FILE", help="model.onnx, model.xml, model.pt2, …"),
    ],
    dynamic: Annotated[bool, typer.Option("--dynamic", help="Images of all sizes (the default).")] = False,
    size: Annotated[
        str | None, typer.Option("--size", metavar="HxW", help="Images of one size, such as 480x640.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option("--batch", min=1, help="Number of images in a call; needs --size.")
    ] = None,
    masks: Annotated[
        _Masks, typer.Option("--masks", help="box: a grid over each box. image: pasted into the image.")
    ] = _Masks.box,
    input: Annotated[_Input, typer.Option("--input", help="uint8: pixels in 0..255. float32: in 0..1.")] = _Input.uint8,
    precision: Annotated[
        _Precision, typer.Option("--precision", help="The numbers that convolutions multiply.")
    ] = _Precision.fp32,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file in --output.")] = False,
) -> None:
    """Write a detector or classifier, with its pre- and postprocessing, as a file for another runtime."""
    from vovnet.checkpoints.places import is_torchvision
    from vovnet.classification import is_classifier, load_classifier
    from vovnet.export.writing import check_output

    if dynamic and size is not None:
        raise InputError("--dynamic and --size: a file is for images of all sizes or of one; give one of them")
    path = check_output(output, format, overwrite=overwrite)
    options = _Options(
        size=parse_size(size),
        batch=batch,
        input=cast("InputType", str(input)),
        precision=cast("Precision", str(precision)),
    )
    kind = cast("Format", str(format))
    if not is_torchvision(weights) and is_classifier(weights):
        from vovnet.export.classifier import export_classifier

        written = export_classifier(load_classifier(weights), path, kind, **options)
    else:
        from vovnet.detection.export import export_detector
        from vovnet.hub import load_detector

        mask_form = None if masks is _Masks.none else cast("Masks", str(masks))
        written = export_detector(load_detector(weights), path, kind, masks=mask_form, **options)
    typer.echo(f"{written}; try: vovnet predict IMAGE --weights {written}")


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Read ``HxW``.

    Raises:
        InputError: the text is not two numbers of pixels.
    """
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,5})[x×](\d{1,5})", text.strip().lower())
    if not match or not all(int(side) for side in match.groups()):
        raise InputError(f"--size {text}: expected height and width in pixels, such as 480x640")
    return int(match[1]), int(match[2])
