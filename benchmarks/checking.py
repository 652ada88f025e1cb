"""The cost of checking the samples of one's own dataset, next to loading them.

    python -m benchmarks.checking [--size 640x480] [--objects 7]

``train`` and ``evaluate`` check every sample when it is loaded. Loading is the least that a dataset does: it decodes a
JPEG and draws the masks of its polygons. Checking is what comes on top of it.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.common import Ratio, environment, positive
from benchmarks.images import generate_images
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.data.samples import check_sample
from vovnet.timing.rounds import interleave

GOAL = 0.1  # of the time of loading


def compare(size: tuple[int, int], objects: int, count: int, rounds: int, *, mask: bool) -> Ratio:
    """Time both for one kind of targets, print milliseconds of processor time per image, and return the ratio."""
    with tempfile.TemporaryDirectory() as folder:
        source = generate_images(Path(folder), count=count, size=size, objects=objects)
        dataset = CocoDataset([source], masks=mask, training=True)
        samples = [dataset[index] for index in range(count)]
        classes = len(dataset.categories)

        def load(_: int) -> float:
            return _cpu_seconds(lambda: [dataset[index] for index in range(count)])

        def check(_: int) -> float:
            return _cpu_seconds(lambda: [check_sample(sample, index, classes) for index, sample in enumerate(samples)])

        contestants: dict[str, Callable[[int], float]] = {"load": load, "check": check}
        seconds = interleave(contestants, rounds, warmup=1)
    took = {name: 1000 * statistics.median(turns) / count for name, turns in seconds.items()}
    kind = "boxes and masks" if mask else "boxes"
    print(f"{kind}: load {took['load']:.3f} ms, check {took['check']:.3f} ms an image")
    return Ratio(f"check / load, {kind}", took["check"] / took["load"], GOAL, at_least=False)


def _cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line and run; return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="640x480", help="width and height of the images in pixels")
    parser.add_argument("--objects", type=positive, default=7, help="objects in an image")
    parser.add_argument("--count", type=positive, default=32, help="number of images")
    parser.add_argument("--rounds", type=positive, default=9)
    given = parser.parse_args(arguments)
    width, height = map(int, given.size.split("x"))
    ratios = [compare((width, height), given.objects, given.count, given.rounds, mask=mask) for mask in (False, True)]
    print(environment("torch", "torchvision", "pillow", threads=torch.get_num_threads()))
    print(*ratios, sep="\n")
    return int(not all(ratio.met for ratio in ratios))


if __name__ == "__main__":
    sys.exit(main())
