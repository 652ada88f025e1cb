"""Seconds to load a detector by its Hub name from a warm cache, and to build it and load its file by hand.

    python -m benchmarks.loading [--mask]

Both are offline, read the same file from huggingface_hub's cache and return equal detectors. "By hand" is what a user
would write: it initializes random parameters, replaces them with the file's, and checks only the keys and shapes that
``load_state_dict`` checks. Ours skips the initialization, and checks the file's config, shapes and checksum.

Nothing heavy is imported at the top, because huggingface_hub reads the location of its cache when it is imported.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.common import Ratio, environment, positive, throughput_table, timed

if TYPE_CHECKING:
    from torch import nn

    from vovnet.detection.config.model import ModelRecipe

GOAL = 1.3
OURS, HAND = "load_detector", "by hand"
NAME = "somebody/detector"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
CLASSES = 80


def model_of(options: argparse.Namespace) -> ModelRecipe:
    """Return the shipped recipe's model with COCO's number of classes."""
    from dataclasses import replace

    from vovnet.detection.config.loading import load_recipe

    recipe = load_recipe(f"{'mask' if options.mask else 'faster'}_rcnn_vovnet39_fpn")
    return replace(recipe.model, backbone=options.backbone, num_classes=CLASSES)


def fill_cache(cache: Path, model: ModelRecipe) -> Path:
    """Put a detector with random weights into huggingface_hub's cache, and return its snapshot folder."""
    import torch

    from vovnet.detection.checkpoints.folder import save_detector
    from vovnet.detection.models.build import build_detector

    repository = cache / f"models--{NAME.replace('/', '--')}"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / COMMIT
    torch.manual_seed(0)
    named = [{"id": number, "name": f"class {number}"} for number in range(1, CLASSES + 1)]
    save_detector(blobs, build_detector(model, download=False), model, named)
    snapshot.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        # Real blobs are named by their checksum, but nothing compares it later.
        (blobs / name).rename(blobs / f"{name}-etag")
        (snapshot / name).symlink_to(Path("..", "..", "blobs", f"{name}-etag"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT, encoding="ascii")
    return snapshot


def loaders(snapshot: Path, model: ModelRecipe) -> dict[str, Callable[[], nn.Module]]:
    """Return the two ways to load the detector."""
    from safetensors.torch import load_file

    from vovnet.detection.models.build import build_detector
    from vovnet.hub import load_detector

    def by_hand() -> nn.Module:
        detector = build_detector(model, download=False)
        detector.load_state_dict(load_file(snapshot / "model.safetensors"))
        return detector.eval()

    return {OURS: lambda: load_detector(NAME), HAND: by_hand}


def compare(options: argparse.Namespace, cache: Path) -> Ratio:
    """Run the benchmark, print its table and return the ratio of times.

    Args:
        options: the command line's options.
        cache: huggingface_hub's cache, without the repository; huggingface_hub is offline.

    Raises:
        RuntimeError: the two detectors differ.
    """
    from vovnet.timing.rounds import interleave

    model = model_of(options)
    snapshot = fill_cache(cache, model)
    load = loaders(snapshot, model)
    if not _equal(*(one() for one in load.values())):
        raise RuntimeError("the two detectors differ")

    def contestant(name: str) -> Callable[[int], float]:
        def one_round(number: int) -> float:
            gc.collect()  # garbage of earlier rounds is not timed
            loaded: list[nn.Module] = []
            return timed(lambda: loaded.append(load[name]()))

        return one_round

    seconds = interleave({name: contestant(name) for name in load}, options.rounds, warmup=options.warmup)
    rounds = [ours / hand for ours, hand in zip(seconds[OURS], seconds[HAND], strict=True)]
    ratio = Ratio(
        f"seconds, {OURS} / {HAND}",
        statistics.median(seconds[OURS]) / statistics.median(seconds[HAND]),
        GOAL,
        at_least=False,
        note=f"of the least {min(seconds[OURS]) / min(seconds[HAND]):.3f}, "
        f"of single rounds from {min(rounds):.3f} to {max(rounds):.3f} in {len(rounds)}",
    )
    size = (snapshot / "model.safetensors").stat().st_size / 1e6
    print(
        f"\nloading {'Mask' if options.mask else 'Faster'} R-CNN {options.backbone}, {size:.0f} MB, from the cache\n"
        f"{throughput_table(seconds, dict.fromkeys(seconds, 1), 'loads')}\n{ratio}"
    )
    return ratio


def _equal(one: nn.Module, other: nn.Module) -> bool:
    """True if two detectors have equal tensors, bit by bit, and are in the same mode."""
    import torch

    ours, theirs = one.state_dict(), other.state_dict()
    same = ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)
    return same and one.training == other.training


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=(__doc__ or "").split("\n")[0])
    options.add_argument("--mask", action="store_true", help="Mask R-CNN instead of Faster R-CNN")
    options.add_argument("--backbone", default="vovnet39", help="a timm model")
    options.add_argument("--rounds", type=positive, default=21, help="pairs that are measured")
    options.add_argument("--warmup", type=int, default=2, help="pairs before them")
    return options


def main(arguments: Sequence[str] | None = None) -> Ratio:
    """Parse the command line and run, with an empty cache and no network."""
    options = parser().parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"HF_HUB_CACHE": folder, "HF_HUB_OFFLINE": "1"}
        import torch

        packages = ("vovnet", "torch", "torchvision", "timm", "safetensors", "huggingface_hub")
        print(environment(*packages, threads=torch.get_num_threads()))
        return compare(options, Path(folder))


if __name__ == "__main__":
    main()
