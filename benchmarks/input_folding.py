"""Compare the maps of a network that ``vovnet convert --input bgr255`` has folded with those of the network itself.

    python -m benchmarks.input_folding [PHOTO …]

Nothing is timed. Both networks see the same image, each in its own input, in float64. The weights are random, and the
norms have the statistics of the photos, or of generated images if no photos are given.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image, ImageOps
from torch import Tensor, nn

from benchmarks.common import environment, positive
from benchmarks.images import generate_images
from vovnet.detection.checkpoints.network_facts import NetworkInput
from vovnet.hub.input_folding import INPUTS, fold_input

NETWORKS = {"V-39": "vovnet39", "R-50": "resnet50", "V2-57 of timm": "ese_vovnet57b"}
TARGET = INPUTS["bgr255"]
FIRST_STRIDE = 4
VISIBLE = 0.001  # of a map's largest value
GENERATED = 4


@dataclass(frozen=True)
class Difference:
    """How a map of the folded network differs from that of the network."""

    largest: float
    """The largest difference over the map's largest value."""
    cells: int
    """The cells from the border in which it is above :data:`VISIBLE`."""
    width: int
    """The cells from border to border."""

    def __str__(self) -> str:
        return f"{self.largest:.1g}, {self.cells} of {self.width}"


def difference(found: Tensor, expected: Tensor) -> Difference:
    """Compare two maps (1, C, H, W)."""
    relative = (found - expected).abs().amax(dim=(0, 1)) / expected.abs().max()
    rows, columns = (relative > VISIBLE).nonzero(as_tuple=True)
    height, width = relative.shape
    depths = torch.stack((rows, columns, height - 1 - rows, width - 1 - columns)).amin(dim=0) + 1
    return Difference(float(relative.max()), int(depths.max()) if len(depths) else 0, width)


def load_photos(paths: Sequence[Path], size: int) -> Tensor:
    """Return the middle squares of photos, (N, 3, size, size), RGB in [0, 1]."""
    squares = [np.asarray(ImageOps.fit(Image.open(path).convert("RGB"), (size, size))) for path in paths]
    return torch.from_numpy(np.stack(squares)).permute(0, 3, 1, 2) / 255


def fed(images: Tensor, kind: NetworkInput) -> Tensor:
    """Return what a network with an input is fed of RGB images in [0, 1]."""
    ordered = images if kind.channel_order == "rgb" else images.flip(1)
    low, high = kind.range
    mean, std = (ordered.new_tensor(values)[:, None, None] for values in (kind.mean, kind.std))
    return (low + ordered * (high - low) - mean) / std


def build(name: str, photos: Tensor) -> tuple[Any, NetworkInput]:
    """Return a network in float64 with random weights, whose norms have the statistics of photos, and its input."""
    torch.manual_seed(0)
    model: Any = timm.create_model(name)
    cfg = model.pretrained_cfg
    source = NetworkInput("rgb", [0.0, 1.0], list(cfg["mean"]), list(cfg["std"]))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)  # timm begins with 0 in some, which hides their branches
            nn.init.normal_(module.bias, std=0.1)
            module.momentum = 1.0
    model.train()(fed(photos, source))
    return model.eval().double(), source


def outputs(model: Any, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return the maps from stride 4 on, and the logits."""
    maps: list[Tensor] = []

    def keep(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        maps.append(out)

    levels = [info for info in model.feature_info if info["reduction"] >= FIRST_STRIDE]
    hooks = [model.get_submodule(info["module"]).register_forward_hook(keep) for info in levels]
    logits: Tensor = model(images)
    for hook in hooks:
        hook.remove()
    return maps, logits


@torch.inference_mode()
def compare(name: str, photos: Tensor) -> tuple[list[Difference], float]:
    """Return the difference of each map of the first photo, and the logits' largest over their standard deviation."""
    model, source = build(name, photos)
    folded = copy.deepcopy(model)
    folded.load_state_dict(fold_input(model.state_dict(), model.pretrained_cfg["first_conv"], source, TARGET))
    photo = photos[:1].double()
    maps, logits = outputs(model, fed(photo, source))
    other_maps, other_logits = outputs(folded, fed(photo, TARGET))
    differences = [difference(found, expected) for found, expected in zip(other_maps, maps, strict=True)]
    return differences, float((other_logits - logits).abs().max() / logits.std())


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.input_folding", description=(__doc__ or "").split("\n")[0]
    )
    options.add_argument("photos", type=Path, nargs="*", help="the first one is compared; by default generated images")
    options.add_argument("--sizes", type=positive, nargs="+", default=[224, 800], help="sides of the images in pixels")
    options.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    return options


def main(arguments: Sequence[str] | None = None) -> dict[tuple[str, int], tuple[list[Difference], float]]:
    """Parse the command line, print a line for each network and size, and return the differences."""
    options = parser().parse_args(arguments)
    print(environment("vovnet", "torch", "timm", threads=torch.get_num_threads()))
    print("largest difference over the map's largest value, cells from the border above 0.001; logits: over deviation")
    print("| network | image | stride 4 | stride 8 | stride 16 | stride 32 | logits |")
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        paths = options.photos
        if not paths:
            generate_images(Path(folder), count=GENERATED)
            paths = sorted((Path(folder) / "images").iterdir())
        for title in options.networks:
            for size in options.sizes:
                maps, logits = found[title, size] = compare(NETWORKS[title], load_photos(paths, size))
                print(f"| {title} | {size} | {' | '.join(map(str, maps))} | {logits:.1g} |", flush=True)
    return found


if __name__ == "__main__":
    main()
