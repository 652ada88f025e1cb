"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from vovnet.errors import InputError

if TYPE_CHECKING:
    import torch
    from torch import nn

M = TypeVar("M", bound="nn.Module")


def home_path(path: str) -> Path:
    from vovnet.folders.home import expand_home

    return expand_home(path)


def own_transforms(text: str) -> object:
    from vovnet.detection.data.user_transforms import load_transforms

    return load_transforms(text)


def seconds(text: str) -> float:
    from vovnet.detection.training.length import seconds_of

    return seconds_of(text)


# Shells leave "~" alone in quotes and in --output=~/run.
Output = Annotated[
    Path, typer.Option("--output", "-o", parser=home_path, metavar="PATH", help="Folder for the results.")
]
OptionalOutput = Annotated[
    Path | None, typer.Option("--output", "-o", parser=home_path, metavar="PATH", help="Folder for the results.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the results in --output.")]
Device = Annotated[
    str | None,
    typer.Option("--device", help="cpu, cuda, cuda:1 or mps (a Mac's GPU). Default: an NVIDIA GPU if there is one."),
]
Fuse = Annotated[bool, typer.Option("--fuse", help="Run the copy that vovnet.fuse makes: faster, on the CPU only.")]
_DETECTOR = (
    "Folder of a detector (a run), ORG/NAME or ORG/NAME@REVISION on the Hub, or torchvision:NAME, such as "
    "torchvision:maskrcnn_resnet50_fpn_v2. Or a file of `vovnet export`: .onnx, .xml, .pt2 or .torchscript."
)
Weights = Annotated[str, typer.Option("--weights", "-w", help=_DETECTOR)]
AnyWeights = Annotated[
    str,
    typer.Option(
        "--weights",
        "-w",
        help=f"{_DETECTOR} Or a classifier: its folder, ORG/NAME, or a name of timm's, such as vovnet39.",
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the run in --output.")]
AutoResume = Annotated[
    bool, typer.Option("--auto-resume", help="Continue the run in --output if there is one, else start it.")
]
TimeLimit = Annotated[
    float | None,
    typer.Option(
        "--time-limit", parser=seconds, metavar="TIME", help="Save and stop after 2h, 90m, …; --resume goes on."
    ),
]
RecipeOrData = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE|DATA",
        help="Name of a shipped recipe, or a YAML file. Or a folder or file of labels: size, length and rate follow.",
    ),
]
OwnTransforms = Annotated[
    Any,
    typer.Option(
        "--transforms",
        parser=own_transforms,
        metavar="MODULE:FUNCTION",
        help="Own transforms before the recipe's: of torchvision v2, Albumentations, or a function.",
    ),
]
ShowBatch = Annotated[
    Path | None,
    typer.Option("--show-batch", metavar="FILE.png", help="Draw the first training images, after transforms."),
]
OptionalData = Annotated[
    Path | None,
    typer.Argument(
        parser=home_path, metavar="DATA", help="Folder or file of labels of any format, or hf:ORG/NAME on the Hub."
    ),
]
OptionalImages = Annotated[
    Path | None, typer.Option("--images", help="Folder that the file_name entries of --annotations are relative to.")
]


def _be_quiet(asked: bool) -> bool:
    if asked:
        from vovnet.terminal.streams import be_quiet

        be_quiet()
    return asked


Quiet = Annotated[
    bool,
    typer.Option("--quiet", "-q", callback=_be_quiet, help="Print results, warnings and errors alone, no progress."),
]
AsJson = Annotated[
    bool,
    typer.Option("--json", help='Print JSON alone on stdout, for programs; an error is {"error": …, "exit_code": …}.'),
]
Split = Annotated[str | None, typer.Option("--split", help="This split alone.")]
MaxPixels = Annotated[
    int | None,
    typer.Option("--max-pixels", min=1, help="Read images up to this many pixels. Default: Pillow's limit, 178956970."),
]
OptionalAnnotations = Annotated[
    Path | None, typer.Option("--annotations", help="COCO JSON file, in place of DATA; needs --images.")
]
Architecture = Annotated[
    str, typer.Option("--architecture", help="Name of a VoVNet in config.json: timm (loads without vovnet) or vovnet.")
]


def device_for(device: str | None, fuse: bool) -> torch.device:
    """Return the device that ``--device`` names. A fused copy runs on the CPU."""
    from vovnet.processes.devices import choose_device, default_device

    if fuse and device not in (None, "cpu"):
        raise InputError(f"--device {device}: --fuse is for the CPU; leave one of the two out")
    return choose_device("cpu" if fuse else device, default_device())


def cpu_only(device: str | None, fuse: bool) -> None:
    """Refuse options that an exported file does not have: it runs as it is, on the CPU."""
    if fuse:
        raise InputError("--fuse: an exported file runs as it is; leave it out")
    if device not in (None, "cpu"):
        raise InputError(f"--device {device}: exported files run on the CPU here; leave it out")


def fused_if(fuse: bool, model: M) -> M:
    """Return the model, or its fused copy."""
    import vovnet

    return vovnet.fuse(model) if fuse else model
