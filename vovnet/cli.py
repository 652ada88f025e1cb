"""The command ``vovnet``: parses, calls the rooms' public functions, and prints. Nobody imports it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from vovnet.errors import InputError, StoppedError, one_line_errors

app = typer.Typer(
    name="vovnet",
    help="Train, evaluate and use VoVNet detectors.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

benchmark = typer.Typer(help="Measure how fast networks run on this machine.")
app.add_typer(benchmark, name="benchmark")

UsageError: Any = typer.BadParameter.__base__
"""What Typer raises for a mistyped command line; Typer has no public name for it."""


class UsageMistake(StoppedError):
    """A command line that cannot be parsed."""

    exit_code = 2


Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that stand in --output.")]
Device = Annotated[str | None, typer.Option("--device", help="Such as cpu or cuda:0; the GPU where there is one.")]
Fuse = Annotated[bool, typer.Option("--fuse", help="Run vovnet.fuse's copy of the model, on the CPU: faster there.")]
Weights = Annotated[
    str, typer.Option("--weights", "-w", help="A detector's folder (a run), or ORG/NAME[@REVISION] on the Hub.")
]
Architecture = Annotated[
    str, typer.Option("--architecture", help="How a VoVNet is stored: timm (plain timm loads it, too) or vovnet.")
]


@app.command()
def quickstart(
    output: Output = Path("runs/quickstart"),
    overwrite: Overwrite = False,
) -> None:
    """Generate a dataset of shapes, train a small Mask R-CNN on it, evaluate it, and draw what it sees."""
    from vovnet.detection.quickstart import run_quickstart

    typer.echo(run_quickstart(output, overwrite=overwrite))


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="Name of a shipped recipe, or a YAML file.")],
    output: Output,
    overrides: Annotated[list[str] | None, typer.Argument(help="key=value, such as solver.base_lr=0.01")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run that stands in --output.")] = False,
    overwrite: Overwrite = False,
    device: Device = None,
) -> None:
    """Train a detector on COCO JSON; for several processes: torchrun -m vovnet.detection.train …"""
    from vovnet.detection import format_metrics, load_recipe
    from vovnet.detection import train as train_detector

    metrics = train_detector(
        load_recipe(recipe, overrides or []), output, resume=resume, overwrite=overwrite, device=device
    )
    if metrics:
        typer.echo(format_metrics(metrics))
    typer.echo(f"the run is in {output}; try: vovnet predict IMAGE --weights {output} --output predictions")


@app.command()
def evaluate(
    weights: Weights,
    images: Annotated[Path, typer.Option("--images", help="Folder that file_name entries are relative to.")],
    annotations: Annotated[Path, typer.Option("--annotations", help="COCO JSON.")],
    output: Output,
    overwrite: Overwrite = False,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Loader processes.")] = 2,
    device: Device = None,
    fuse: Fuse = False,
) -> None:
    """Evaluate a detector: COCO's twelve numbers, AP for each class, results in COCO's form, precision-recall plot."""
    from vovnet.detection import evaluate as evaluate_detector
    from vovnet.detection import format_metrics
    from vovnet.detection.config.schema import DataSource
    from vovnet.detection.data.coco import CocoDataset
    from vovnet.detection.evaluation.evaluator import category_names_checked
    from vovnet.files import claim_folder
    from vovnet.hub import load_detector

    place = _place(device, fuse)
    detector: Any = load_detector(weights)
    dataset = CocoDataset(
        [DataSource(str(images), str(annotations))],
        masks=detector.recipe.detector == "mask_rcnn",
        training=False,
        channels=detector.recipe.in_chans,
        categories=detector.categories,
        category_names=category_names_checked(detector),
    )
    claim_folder(output, overwrite=overwrite)
    metrics = evaluate_detector(_ready(detector, fuse), dataset, output, device=place, workers=workers, progress=True)
    typer.echo(format_metrics(metrics))


@app.command()
def predict(
    images: Annotated[list[Path], typer.Argument(help="Images.")],
    weights: Weights,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the results.")] = None,
    folder: Annotated[bool, typer.Option("--folder", help="The arguments are folders of images.")] = False,
    threshold: Annotated[float, typer.Option("--threshold", min=0, max=1, help="Lowest score that is drawn.")] = 0.5,
    overwrite: Overwrite = False,
    device: Device = None,
    fuse: Fuse = False,
) -> None:
    """Detect objects in images (OUT/STEM.png, OUT/STEM.json), or name them with a classifier's weights."""
    from vovnet.detection.data.images import list_images

    paths = [path for entry in images for path in (list_images(entry) if folder else [entry])]
    if _is_classifier(weights):
        _classify(weights, paths, device, fuse)
        return
    if output is None:
        raise InputError("--output: a folder for the drawings and JSON files is needed")
    from vovnet.detection.prediction.predictor import predict_files
    from vovnet.files import claim_folder
    from vovnet.hub import load_detector

    place = _place(device, fuse)
    detector = load_detector(weights)
    claim_folder(output, overwrite=overwrite)
    predict_files(_ready(detector, fuse), paths, output, threshold, device=place)


@app.command("check-data")
def check_data(
    images: Annotated[Path, typer.Option("--images", help="Folder that file_name entries are relative to.")],
    annotations: Annotated[Path, typer.Option("--annotations", help="COCO JSON.")],
    decode: Annotated[bool, typer.Option("--decode/--no-decode", help="Decode every image (slow).")] = True,
) -> None:
    """Read a dataset and print a table of what is wrong with it; the exit code is 1 if anything is."""
    from vovnet.detection.data.validation import check_data as check

    report = check(images, annotations, decode=decode, progress=True)
    typer.echo(report.table())
    raise typer.Exit(0 if report.ok else 1)


@app.command()
def convert(
    file: Annotated[Path, typer.Argument(help="A published .pth file.")],
    out: Annotated[Path, typer.Argument(help="Folder for config.json and model.safetensors.")],
    expect: Annotated[str | None, typer.Option("--expect", help="Recipe or timm model that it has to be of.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what stands in OUT.")] = False,
    architecture: Architecture = "timm",
) -> None:
    """Turn a published checkpoint (detector, classifier or backbone) into a folder that loads here."""
    from vovnet.hub import convert_checkpoint

    typer.echo(convert_checkpoint(file, out, overwrite=overwrite, expect=expect, architecture=architecture))


@app.command()
def publish(
    folder: Annotated[Path, typer.Argument(help="Of a training run, of `vovnet convert`, or in timm's form.")],
    repository: Annotated[str, typer.Argument(help="ORG/NAME on the Hub.")],
    yes: Annotated[bool, typer.Option("--yes", help="Upload; without it only what would go is printed.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    license: Annotated[str | None, typer.Option("--license", help="Such as apache-2.0, cc-by-nc-4.0 or other.")] = None,
    dataset: Annotated[str | None, typer.Option("--dataset", help="What the card calls the training data.")] = None,
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
        dataset=dataset,
        architecture=architecture,
    )
    typer.echo(done)


@app.command()
def verify(
    name: Annotated[str, typer.Argument(help="A folder of `vovnet convert`, or ORG/NAME on the Hub.")],
    revision: Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit on the Hub.")] = None,
) -> None:
    """Hold a published model to its checksums and its recorded outputs; the exit code is 1 if anything differs."""
    from vovnet.hub import verify as verify_model

    typer.echo(verify_model(name, revision))


@benchmark.command("cpu")
def benchmark_cpu(
    cases: Annotated[list[str] | None, typer.Option("--case", help="One of the cases; may be repeated.")] = None,
    contestants: Annotated[
        list[str] | None, typer.Option("--contestant", help="One of the contestants; may be repeated.")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="In each, every contestant has a turn.")] = 15,
    threads: Annotated[int | None, typer.Option("--threads", min=1, help="Of every contestant.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder for table, numbers and chart.")] = None,
    overwrite: Overwrite = False,
    huge_pages: Annotated[bool, typer.Option(help="Ask for transparent huge pages, for all alike.")] = True,
) -> None:
    """Time vovnet.fuse, PyTorch, torch.compile, ONNX Runtime and OpenVINO on backbones and a detector, in turns."""
    from vovnet.detection.cpu_benchmark import run_benchmark
    from vovnet.detection.cpu_benchmark.machine import restart_with_huge_pages
    from vovnet.files import claim_folder

    if huge_pages:
        restart_with_huge_pages()
    if output is not None:
        claim_folder(output, overwrite=overwrite)
    run_benchmark(cases or [], contestants or [], rounds, threads=threads, output=output, say=typer.echo)


@app.command()
def env() -> None:
    """Versions, devices, what is compiled and what is missing: a page to paste into a bug report."""
    from vovnet.environment import environment_report

    typer.echo(environment_report())


def _is_classifier(weights: str) -> bool:
    """Whether a name is timm's: a known model, one of timm's prefixes, or a folder or repository with timm's config."""
    import timm

    import vovnet  # noqa: F401 (registers our models)
    from vovnet.checkpoints.hub import HUB_NAME, hub_files
    from vovnet.files import CONFIG_FILE, read_json

    folder = Path(weights)
    if weights.startswith(("hf-hub:", "local-dir:")) or (not folder.exists() and timm.is_model(weights.split(".")[0])):
        return True
    if not folder.exists() and HUB_NAME.fullmatch(weights.partition("@")[0]):
        folder = hub_files(weights, [CONFIG_FILE])
    return (folder / CONFIG_FILE).is_file() and "architecture" in read_json(folder / CONFIG_FILE)


def _place(device: str | None, fuse: bool) -> Any:
    """The torch device to run on; a fused copy is for the CPU."""
    from vovnet.detection.distributed import choose_device, default_device

    if fuse and device not in (None, "cpu"):
        raise InputError(f"--device {device}: --fuse is for the CPU; leave one of the two out")
    return choose_device("cpu" if fuse else device, default_device())


def _ready(model: Any, fuse: bool) -> Any:
    """The model, or its fused copy."""
    import vovnet

    return vovnet.fuse(model) if fuse else model


def _classify(weights: str, paths: list[Path], device: str | None, fuse: bool) -> None:
    """Print the five likeliest classes of each image; those that cannot be read are an error after the others."""
    from vovnet.classification import classify, load_classifier
    from vovnet.detection.data.images import read_image

    place = _place(device, fuse)
    model: Any = _ready(load_classifier(weights), fuse).to(place)
    failed = []
    for path in paths:
        try:
            answer = classify(model, [read_image(path, channels=model.pretrained_cfg["input_size"][0])])[0]
        except InputError as error:
            failed.append(str(error))
            continue
        typer.echo(f"{path}: " + ", ".join(f"{entry['label']} {entry['score']:.3f}" for entry in answer))
    if failed:
        raise InputError(f"{len(failed)} of {len(paths)} images were not done: {'; '.join(failed)}")


def main() -> None:
    """Entry point: one line and a non-zero exit code for wrong input, a traceback for defects."""
    with one_line_errors():
        try:
            code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        except UsageError as error:
            raise UsageMistake(f"{' '.join(error.format_message().split())} (see --help)") from error
        except typer.Abort:
            raise UsageMistake("stopped") from None
    sys.exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
