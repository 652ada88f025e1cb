"""Commands that convert published checkpoints, and that publish and verify models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from vovnet.cli.options import Architecture

if TYPE_CHECKING:
    from vovnet.hub.release import StoredAs

commands = typer.Typer()


@commands.command()
def convert(
    file: Annotated[
        Path,
        typer.Argument(help="A published .pth file or a zip of it, a .safetensors file, or timm's folder or Hub name."),
    ],
    out: Annotated[Path, typer.Argument(help="Folder for config.json and model.safetensors.")],
    expect: Annotated[
        str | None, typer.Option("--expect", help="Recipe, timm model or torchvision:NAME that the file must hold.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the results in OUT.")] = False,
    input: Annotated[
        str | None,
        typer.Option("--input", help="bgr255: fold the input of conventions: legacy into the network, for init=OUT."),
    ] = None,
    part: Annotated[
        str | None, typer.Option("--part", help="backbone: take the network of a file that holds more.")
    ] = None,
    architecture: Architecture = "timm",
) -> None:
    """Convert a published checkpoint (detector, classifier or backbone) into a folder that loads here."""
    from vovnet.hub import convert_checkpoint

    stored_as = cast("StoredAs", architecture)
    typer.echo(
        convert_checkpoint(
            file, out, overwrite=overwrite, expect=expect, architecture=stored_as, input=input, part=part
        )
    )


@commands.command()
def publish(
    folder: Annotated[Path, typer.Argument(help="A training run, a folder of `vovnet convert`, or a timm folder.")],
    repository: Annotated[str, typer.Argument(help="ORG/NAME on the Hub.")],
    yes: Annotated[bool, typer.Option("--yes", help="Upload. Without it, only print what would be uploaded.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    license: Annotated[str | None, typer.Option("--license", help="Such as apache-2.0, cc-by-nc-4.0 or other.")] = None,
    train_data: Annotated[
        str | None, typer.Option("--train-data", help="Name of the training data on the card.")
    ] = None,
    eval_data: Annotated[
        str | None, typer.Option("--eval-data", help="Name of the data that the metrics were measured on.")
    ] = None,
    example: Annotated[
        Path | None, typer.Option("--example", help="Image for the card, with detections drawn; you may publish it.")
    ] = None,
    example_credit: Annotated[
        str | None, typer.Option("--example-credit", help="Author and licence of that image, for the line below it.")
    ] = None,
    architecture: Architecture = "timm",
) -> None:
    """Upload a model to the Hugging Face Hub: weights, configuration, model card and checksums, nothing else."""
    from vovnet.hub import publish as publish_model

    done = publish_model(
        folder,
        repository,
        yes=yes,
        private=not public,
        license=license,
        train_data=train_data,
        eval_data=eval_data,
        architecture=cast("StoredAs", architecture),
        example=example,
        example_credit=example_credit,
    )
    typer.echo(done)


@commands.command()
def verify(
    name: Annotated[str, typer.Argument(help="A folder of `vovnet convert`, or ORG/NAME on the Hub.")],
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit on the Hub.")] = None,
) -> None:
    """Compare a published model with its checksums and recorded outputs. The exit code is 1 if anything differs."""
    from vovnet.hub import verify as verify_model

    typer.echo(verify_model(name, revision))
