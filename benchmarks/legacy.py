"""The cost of the published conventions: a legacy detector, and torchvision's with the same network and weights.

    python -m benchmarks.legacy [--mask]

Inference takes one image as ``vovnet evaluate`` gives it and includes the resize. Training is a forward and backward
pass over resized images. The classifier's random weights have a larger spread, so that hundreds of boxes pass the score
threshold, as with a trained detector.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.batches import CLASSES, Batch, make_batch, wait
from benchmarks.common import Ratio, environment, positive, throughput_table, timed
from vovnet.detection.config.loading import load_recipe
from vovnet.detection.legacy.masks import Polygons
from vovnet.detection.models.build import build_detector
from vovnet.timing.rounds import interleave

INFERENCE_GOAL, TRAINING_GOAL = 1.1, 1.15
LEGACY, TORCHVISION = "legacy", "torchvision"


def build_pair(options: argparse.Namespace) -> dict[str, nn.Module]:
    """Return two detectors with equal weights, but for the first convolution: its input is 57 times larger in one."""
    kind = "mask" if options.mask else "faster"
    model = replace(
        load_recipe(f"{kind}_rcnn_{options.network}_FPN_2x").model, num_classes=CLASSES, min_size=options.min_size
    )
    torch.manual_seed(0)
    legacy: Any = build_detector(model, download=False)
    nn.init.normal_(legacy.roi_heads.box_predictor.cls_score.weight, std=0.05)
    torchvision = build_detector(replace(model, conventions="torchvision"), download=False)
    torchvision.load_state_dict(legacy.state_dict())
    first = next(parameter for parameter in legacy.backbone.body.parameters() if parameter.dim() == 4)
    with torch.no_grad():
        first /= 57  # 255 times ImageNet's standard deviation
    return {LEGACY: legacy.to(options.device), TORCHVISION: torchvision.to(options.device)}


def legacy_targets(targets: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the same objects with inclusive boxes, and each mask as the polygon of its box."""
    result = []
    for target in targets:
        boxes: Tensor = target["boxes"] - torch.tensor([0.0, 0, 1, 1])
        corners = boxes.numpy().astype(np.float32)
        polygons = Polygons([[np.array([a, b, c, b, c, d, a, d], dtype=np.float32)] for a, b, c, d in corners])
        result.append({"boxes": boxes, "labels": target["labels"], "polygons": polygons})
    return result


def inference(detector: Any, options: argparse.Namespace) -> Callable[[int], float]:
    """Return a function that returns the seconds of a detector for one image."""
    device = torch.device(options.device)

    def one_round(number: int) -> float:
        detector.eval()
        (image, *_), _ = batch_of(number, options.image, 1, options)
        image = image.to(device).float() / 255

        def work() -> None:
            with torch.no_grad():
                detector([image])
            wait(device)

        wait(device)
        return timed(work)

    return one_round


def training(detector: Any, options: argparse.Namespace, *, legacy: bool) -> Callable[[int], float]:
    """Return a function that returns the seconds of a detector for a forward and a backward pass."""
    device = torch.device(options.device)

    def one_round(number: int) -> float:
        detector.train()
        detector.zero_grad(set_to_none=True)
        images, targets = batch_of(number, options.size, options.batch_size, options)
        truths = legacy_targets(targets) if legacy else targets
        on_device = [{key: value.to(device) for key, value in truth.items() if key != "image_id"} for truth in truths]
        normalised = [image.to(device).float() / 255 for image in images]

        def work() -> None:
            losses = detector(normalised, on_device)
            torch.stack(list(losses.values())).sum().backward()
            wait(device)

        wait(device)
        return timed(work)

    return one_round


def batch_of(number: int, size: Sequence[int], images: int, options: argparse.Namespace) -> Batch:
    """Return noise with random objects, the same for both detectors of a round."""
    height, width = size
    return make_batch(number % 2**31, size=(height, width), images=images, objects=options.objects, masks=options.mask)


def compare(options: argparse.Namespace) -> list[Ratio]:
    """Run the benchmark, print its tables and return the ratios."""
    pair = build_pair(options)
    kind = f"{'Mask' if options.mask else 'Faster'} R-CNN {options.network}"
    found = []
    jobs = {
        f"inference of {kind}, a {options.image[0]}x{options.image[1]} image resized to {options.min_size}": (
            {name: inference(detector, options) for name, detector in pair.items()},
            1,
            INFERENCE_GOAL,
        ),
        f"training pass of {kind}, {options.batch_size} x {options.size[0]}x{options.size[1]}": (
            {name: training(detector, options, legacy=name == LEGACY) for name, detector in pair.items()},
            options.batch_size,
            TRAINING_GOAL,
        ),
    }
    for title, (contestants, images, goal) in jobs.items():
        seconds = interleave(contestants, options.rounds, warmup=options.warmup)
        medians = {name: sorted(taken)[len(taken) // 2] for name, taken in seconds.items()}
        least = min(seconds[LEGACY]) / min(seconds[TORCHVISION])
        ratio = Ratio(
            f"seconds, {LEGACY} / {TORCHVISION}",
            medians[LEGACY] / medians[TORCHVISION],
            goal,
            at_least=False,
            note=f"of the least {least:.3f}",
        )
        print(f"\n{title}\n{throughput_table(seconds, dict.fromkeys(seconds, images))}\n{ratio}")
        found.append(ratio)
    return found


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.legacy", description=(__doc__ or "").split("\n")[0])
    options.add_argument("--mask", action="store_true", help="Mask R-CNN instead of Faster R-CNN")
    options.add_argument("--network", choices=["R_50", "R_101", "V_39", "V_57"], default="V_39")
    options.add_argument("--image", type=positive, nargs=2, default=[480, 640], metavar=("HEIGHT", "WIDTH"))
    options.add_argument("--min-size", type=positive, default=800, help="short side that it is resized to")
    options.add_argument("--size", type=positive, nargs=2, default=[320, 416], metavar=("HEIGHT", "WIDTH"))
    options.add_argument("--batch-size", type=positive, default=2)
    options.add_argument("--rounds", type=positive, default=7, help="pairs that are measured")
    options.add_argument("--warmup", type=int, default=1, help="pairs before them")
    options.add_argument("--objects", type=positive, default=8, help="objects on an image")
    options.add_argument("--device", default="cpu")
    return options


def main(arguments: Sequence[str] | None = None) -> list[Ratio]:
    """Parse the command line and run."""
    options = parser().parse_args(arguments)
    print(environment("vovnet", "torch", "torchvision", "timm", threads=torch.get_num_threads()))
    return compare(options)


if __name__ == "__main__":
    main()
