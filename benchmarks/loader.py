"""Images/s of the data loader alone, and of the training step that it feeds.

    python -m benchmarks.loader [--images DIR --annotations FILE.json]

The loader is the one of ``vovnet train`` with the shipped recipe's transforms and two worker processes. The step is
that of ``vovnet train`` on a batch of this loader. They never run at the same time: the workers have ended before a
step is timed. Batches that the workers had prepared before the clock started are not counted.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.batches import wait
from benchmarks.common import Ratio, environment, positive, speed_ratio, throughput_table, timed
from benchmarks.images import generate_images
from benchmarks.training import build_ours, recipe_for
from vovnet.detection.config.data import DataRecipe
from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.data.loader import training_loader
from vovnet.detection.training.iteration import step
from vovnet.timing.rounds import interleave

GOAL = 3.0
LOADER, STEP = "loader", "training step"
PREFETCHED = 2
"""Number of batches that a worker of torch's DataLoader prepares ahead."""


def loader_rounds(dataset: Any, data: DataRecipe, batch_size: int, batches: int) -> Callable[[int], float]:
    """Return a function of a round's number that returns the seconds the loader takes for ``batches`` batches.

    Every round has other batches.
    """
    before = (PREFETCHED + 1) * max(1, data.workers)

    def one_round(number: int) -> float:
        start = (number + 1) * (before + batches)
        # A generator; its close() ends the worker processes.
        stream: Any = training_loader(dataset, data, batch_size=batch_size, seed=0, start=start)
        for _ in range(before):
            next(stream)

        def work() -> None:
            for _ in range(batches):
                next(stream)

        try:
            return timed(work)
        finally:
            stream.close()

    return one_round


def compare(options: argparse.Namespace, source: DataSource, *, mask: bool) -> Ratio:
    """Run the benchmark for one detector, print its table and return the ratio."""
    device = torch.device(options.device)
    recipe = recipe_for("mask_rcnn" if mask else "faster_rcnn", options.batch_size, options.min_size, options.max_size)
    data = replace(recipe.data, workers=options.workers)
    dataset = CocoDataset([source], masks=mask, training=True)
    run = build_ours(recipe, len(dataset.categories), device)
    batch = next(training_loader(dataset, replace(data, workers=0), batch_size=options.batch_size, seed=0))

    def steps(number: int) -> float:
        def work() -> None:
            for _ in range(options.steps):
                step(run, [batch])
            wait(device)

        return timed(work)

    contestants = {LOADER: loader_rounds(dataset, data, options.batch_size, options.batches), STEP: steps}
    seconds = interleave(contestants, options.rounds, warmup=1)
    images = {LOADER: options.batches * options.batch_size, STEP: options.steps * options.batch_size}
    ratio = speed_ratio(seconds, images, LOADER, STEP, GOAL)
    shapes = ", ".join("x".join(map(str, image.shape[-2:])) for image in batch[0])
    print(
        f"\n{'Mask' if mask else 'Faster'} R-CNN with vovnet39, {options.workers} workers, batches of "
        f"{options.batch_size}, short side {options.min_size} and long side at most {options.max_size} pixels (step: "
        f"{shapes})\n{throughput_table(seconds, images)}\n{ratio}"
    )
    return ratio


def compare_all(options: argparse.Namespace) -> list[Ratio]:
    """Run the benchmark for the detectors that were asked for."""
    with tempfile.TemporaryDirectory() as folder:
        if options.images is not None:
            source = DataSource(images=options.images, annotations=options.annotations)
            print(f"data: {options.annotations}")
        else:
            source = generate_images(Path(folder), count=options.count)
            sizes = [path.stat().st_size for path in Path(source.images).iterdir()]
            print(f"data: {len(sizes)} generated JPEGs of 640x480 pixels, {sum(sizes) / len(sizes) / 1000:.0f} kB each")
        kinds = {"faster": [False], "mask": [True], "both": [False, True]}[options.detector]
        return [compare(options, source, mask=mask) for mask in kinds]


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=(__doc__ or "").split("\n")[0])
    options.add_argument("--detector", choices=["faster", "mask", "both"], default="both")
    options.add_argument("--images", help="a folder of real images; needs --annotations")
    options.add_argument("--annotations", help="their COCO JSON, with segmentations")
    options.add_argument("--count", type=positive, default=64, help="number of images to generate if none are given")
    options.add_argument("--min-size", type=positive, default=320, help="short side in pixels, of loader and step")
    options.add_argument("--max-size", type=positive, default=533, help="bound on the long side in pixels")
    options.add_argument("--batch-size", type=positive, default=2)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--rounds", type=positive, default=5, help="rounds that are measured, after one of warm-up")
    options.add_argument("--batches", type=positive, default=60, help="batches per turn of the loader")
    options.add_argument("--steps", type=positive, default=2, help="training steps per turn")
    options.add_argument("--device", default="cpu")
    options.add_argument("--threads", type=positive, help="torch threads of the step; by default torch's own choice")
    return options


def main(arguments: Sequence[str] | None = None) -> list[Ratio]:
    """Parse the command line and run."""
    options = parser().parse_args(arguments)
    if (options.images is None) != (options.annotations is None):
        parser().error("--images and --annotations go together")
    if options.threads:
        torch.set_num_threads(options.threads)
    print(environment("vovnet", "torch", "torchvision", "pillow", threads=torch.get_num_threads()))
    return compare_all(options)


if __name__ == "__main__":
    main()
