"""Detecting in the tiles of a large image by our rules of merging, and by SAHI with the same detector and tiles.

    python -m benchmarks.tiles [--weights RUN] [--image FILE] [--mask]

Every way computes each tile once, one after the other, and merges what was found. Without ``--weights`` and ``--image``
a detector with random weights looks at noise. SAHI is not installed with vovnet (``pip install sahi``).
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.common import Ratio, environment, positive, speed_ratio, throughput_table, timed

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

GOAL = 1.0
RULES = ("auto", "nms", "nmm")
SAHI = "SAHI"


def detector_of(options: argparse.Namespace) -> nn.Module:
    """Return the detector of a run, or one with random weights that returns 30 objects of each tile."""
    import torch

    if options.weights:
        from vovnet.hub import load_detector

        return load_detector(options.weights)
    from vovnet.detection import build_detector, load_recipe

    torch.manual_seed(0)
    kind = "mask" if options.mask else "faster"
    small = [f"model.min_size={options.tile // 2}", f"model.max_size={options.tile // 2}"]
    limits = ["model.box_score_thresh=0", "model.box_detections_per_img=30", "model.num_classes=3"]
    settings = ["model.pretrained=false", "model.norm=bn", "model.backbone=vovnet27_slim"]
    detector: Any = build_detector(load_recipe(f"{kind}_rcnn_vovnet39_fpn", [*small, *limits, *settings])).eval()
    detector.categories = [{"id": number, "name": f"class {number}"} for number in (1, 2, 3)]
    return detector


def pixels_of(options: argparse.Namespace) -> NDArray[np.uint8]:
    """Return an image (H, W, 3)."""
    import numpy as np
    from PIL import Image

    if options.image:
        with Image.open(options.image) as image:
            return np.asarray(image.convert("RGB"))
    height, width = options.size
    coarse = np.random.default_rng(0).integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height)))


def ways(detector: nn.Module, pixels: NDArray[np.uint8], options: argparse.Namespace) -> dict[str, Callable[[], int]]:
    """Return what is timed; each returns the number of objects."""
    from sahi.models.torchvision import TorchVisionDetectionModel  # pyright: ignore[reportMissingImports]
    from sahi.predict import get_sliced_prediction  # pyright: ignore[reportMissingImports]

    from vovnet.detection import predict
    from vovnet.results.merging import MergeRule

    categories: Any = detector.categories
    names = {str(label): one["name"] for label, one in enumerate(categories, 1)}
    model = TorchVisionDetectionModel(
        model=detector, category_mapping=names, confidence_threshold=options.score, device="cpu"
    )
    sides, overlaps = (options.tile, options.tile), (options.overlap, options.overlap)

    def sahi() -> int:
        found = get_sliced_prediction(pixels, model, *sides, *overlaps, perform_standard_pred=False, verbose=0)
        return len(found.object_prediction_list)

    def ours(rule: MergeRule) -> int:
        given: Any = {"tile": options.tile, "overlap": options.overlap, "score": options.score}
        return len(predict(detector, [pixels], merge=rule, **given)[0])

    return {"auto": lambda: ours("auto"), "nms": lambda: ours("nms"), "nmm": lambda: ours("nmm"), SAHI: sahi}


def main(arguments: Sequence[str] | None = None) -> list[Ratio]:
    """Print the table and the ratios of speed, and return these; none where SAHI is not installed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="a folder with config.json and model.safetensors")
    parser.add_argument("--image", help="an image file")
    parser.add_argument("--mask", action="store_true", help="random weights of a detector with masks")
    parser.add_argument("--size", type=positive, nargs=2, default=(1920, 2560), help="height and width without --image")
    parser.add_argument("--tile", type=positive, default=480)
    parser.add_argument("--overlap", type=float, default=0.3)
    parser.add_argument("--score", type=float, default=0.3, help="lower detections are dropped before the merging")
    parser.add_argument("--rounds", type=positive, default=4)
    options = parser.parse_args(arguments)
    if importlib.util.find_spec("sahi") is None:
        print("SAHI is not installed: pip install sahi")
        return []
    if not options.weights:
        options.score = 0.1  # random weights are sure of nothing; below, SAHI takes another rule
    contestants = ways(detector_of(options), pixels_of(options), options)
    counts = {name: work() for name, work in contestants.items()}  # warms everything up
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(options.rounds):
        for name, work in list(contestants.items())[:: -1 if number % 2 else 1]:
            seconds[name].append(timed(work))
    units = dict.fromkeys(contestants, 1)
    print(throughput_table(seconds, units))
    print("objects: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    ratios = [speed_ratio(seconds, units, rule, SAHI, GOAL) for rule in RULES]
    print(*ratios, sep="\n")
    print(environment("torch", "torchvision"))
    return ratios


if __name__ == "__main__":
    sys.exit(int(not all(ratio.met for ratio in main())))
