"""``python -m vovnet.ops.shipping``: compile the operators for other machines, into wheels or Hugging Face's layout."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from vovnet.errors import InputError, run_command

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def ship_operators(
    wheel: Annotated[
        Path | None,
        typer.Option("--wheel", help="Folder with the pure wheel; the one with operators is written beside it."),
    ] = None,
    kernels: Annotated[
        Path | None, typer.Option("--kernels", help="Folder for the layout that Hugging Face's kernels loads.")
    ] = None,
    cuda: Annotated[
        bool,
        typer.Option("--cuda", help="Write the wheel for GPUs instead, or the variant for GPUs, too; this needs nvcc."),
    ] = False,
    arch: Annotated[
        str | None, typer.Option("--arch", help="Compute capabilities such as 8.0,9.0+PTX; default: all.")
    ] = None,
) -> None:
    """Compile the operators for other machines: Linux on x86-64, any Python, PyTorch 2.11 or later."""
    if (wheel is None) == (kernels is None):
        raise InputError("expected --wheel FOLDER or --kernels FOLDER, and one of them at a time")
    if arch is not None and not cuda:
        raise InputError("--arch is for the CUDA operators: add --cuda")
    # Torch is imported after the arguments have been checked.
    from vovnet.ops.build.sources import parse_targets

    targets = parse_targets(arch) if cuda else None
    if wheel is not None:
        from vovnet.ops.shipping.wheels import write_cpu_wheel, write_cuda_wheel

        path, note = write_cpu_wheel(wheel) if targets is None else write_cuda_wheel(wheel, targets)
        typer.echo(f"{path} ({path.stat().st_size / 2**20:.1f} MiB): {note}")
    if kernels is not None:
        from vovnet.ops.shipping.hub import write_variants

        for folder in write_variants(kernels, targets):
            size = sum(path.stat().st_size for path in folder.iterdir())
            typer.echo(f"{folder} ({size / 2**20:.1f} MiB)")


def main() -> None:
    """Run the command. Wrong input, and a library that cannot be compiled, end it with one line and a non-zero code."""
    run_command(app, sys.argv[1:], "python -m vovnet.ops.shipping")


if __name__ == "__main__":
    main()
