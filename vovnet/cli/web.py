"""The command that writes a page for browsers."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from vovnet.cli.options import Output, Overwrite, home_path
from vovnet.errors import InputError

commands = typer.Typer()


class Precision(StrEnum):
    fp32 = "fp32"
    fp16 = "fp16"


@commands.command("export-web")
def export_web(
    weights: Annotated[str, typer.Argument(help="An .onnx file of `vovnet export`, or what that command takes.")],
    output: Output,
    example: Annotated[
        list[Path] | None, typer.Option("--example", metavar="IMAGE", help="An image that the page offers; repeat it.")
    ] = None,
    title: Annotated[str | None, typer.Option("--title", help="Heading. Default: it names the categories.")] = None,
    threshold: Annotated[float, typer.Option("--threshold", min=0, max=1, help="Lowest score shown at first.")] = 0.5,
    precision: Annotated[
        Precision, typer.Option("--precision", help="Of a model that is exported here: fp32, or fp16 of half the size.")
    ] = Precision.fp32,
    ort: Annotated[
        Path | None,
        typer.Option(
            "--ort",
            parser=home_path,
            metavar="PATH",
            help="node_modules/onnxruntime-web, or npm's .tgz of it. Default: fetched from npm once (33 MB).",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a page of static files that runs a detector in the browser, behind any HTTP server."""
    from vovnet.export.runtime import is_exported
    from vovnet.export.web import write_web_page
    from vovnet.export.web.runtime import WebRuntime, web_runtime
    from vovnet.folders.claim import claimed_folder

    # What may fail comes before the model is exported, which takes a while.
    with claimed_folder(output, overwrite=overwrite), TemporaryDirectory(prefix="vovnet-web-") as scratch:
        for path in (Path(one) for one in example or ()):
            if not path.is_file():
                raise InputError(f"--example {path}: no such image")
        model: str = weights
        runtime: Path | WebRuntime | None = ort
        if not is_exported(weights):
            from vovnet.detection.export import export_detector
            from vovnet.hub import load_detector

            detector, runtime = load_detector(weights), web_runtime(ort)
            path = Path(scratch) / "model.onnx"
            model = str(export_detector(detector, path, "onnx", precision=precision.value))
        page = write_web_page(
            model, output, examples=example or (), title=title, threshold=threshold, ort=runtime, overwrite=overwrite
        )
    typer.echo(f"{page}; try: {shlex.join(['python', '-m', 'http.server', '--directory', str(page.parent)])}")
