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
    from vovnet.export.checking import CheckOptions
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
    int8 = "int8"


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
    calibrate: Annotated[
        Path | None,
        typer.Option("--calibrate", parser=home_path, metavar="FOLDER", help="Typical images; int8 needs them."),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option("--check", parser=home_path, metavar="FOLDER", help="Images: compare the file with the model."),
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option("--annotations", parser=home_path, metavar="FILE", help="COCO JSON of --check: AP of both."),
    ] = None,
    max_drop: Annotated[
        float, typer.Option("--max-drop", min=0, max=1, help="Most that AP may fall with another precision than fp32.")
    ] = 0.01,
    force: Annotated[bool, typer.Option("--force", help="Keep a file that fails its check.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file in --output.")] = False,
) -> None:
    """Write a detector or classifier, with its pre- and postprocessing, as a file for another runtime."""
    from vovnet.checkpoints.places import is_torchvision
    from vovnet.classification import is_classifier
    from vovnet.export.checking import CheckOptions
    from vovnet.export.precisions import check_precision
    from vovnet.export.writing import check_output, staged

    kind, numbers = cast("Format", str(format)), cast("Precision", str(precision))
    if dynamic and size is not None:
        raise InputError("--dynamic and --size: a file is for images of all sizes or of one; give one of them")
    path = check_output(output, format, overwrite=overwrite)
    check_precision(kind, numbers)
    if (calibrate is None) == (numbers == "int8"):
        need = "needs --calibrate FOLDER, images that are typical of what the file will see"
        raise InputError(f"--precision int8: {need}" if calibrate is None else "--calibrate: is for --precision int8")
    options = _Options(size=parse_size(size), batch=batch, input=cast("InputType", str(input)), precision=numbers)
    checks = CheckOptions(check, annotations, max_drop, force)
    write = _write_detector
    if not is_torchvision(weights) and is_classifier(weights):
        write = _write_classifier
    checks.validate(numbers, "detector" if write is _write_detector else "classifier")
    with staged(path) as file:
        write(
            weights, file, kind, None if masks is _Masks.none else cast("Masks", str(masks)), options, calibrate, checks
        )
    typer.echo(f"{path}; try: vovnet predict IMAGE --weights {path}")


def _write_detector(
    weights: str,
    file: Path,
    format: Format,
    masks: Masks | None,
    options: _Options,
    calibrate: Path | None,
    checks: CheckOptions,
) -> None:
    from vovnet.detection.export import check_exported, export_detector
    from vovnet.detection.inference_mode import input_channels
    from vovnet.export.quantization import CalibrationImages
    from vovnet.hub import load_detector

    detector = load_detector(weights)
    images = None if calibrate is None else CalibrationImages(calibrate, input_channels(detector))
    export_detector(detector, file, format, masks=masks, calibration=images, **options)
    check_exported(detector, file, checks, typer.echo)


def _write_classifier(
    weights: str,
    file: Path,
    format: Format,
    masks: Masks | None,
    options: _Options,
    calibrate: Path | None,
    checks: CheckOptions,
) -> None:
    from vovnet.classification import evaluation_config, load_classifier
    from vovnet.export.classifier import export_classifier
    from vovnet.export.classifier_check import check_classifier
    from vovnet.export.quantization import CalibrationImages

    model = load_classifier(weights)
    images = None if calibrate is None else CalibrationImages(calibrate, int(evaluation_config(model)["input_size"][0]))
    export_classifier(model, file, format, calibration=images, **options)
    check_classifier(model, file, checks, typer.echo)


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
