"""The losses of a detector on validation data, without training it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vovnet.detection import distributed
from vovnet.detection.data.cropping import tiles_of
from vovnet.detection.data.loader import evaluation_loader
from vovnet.detection.data.protocol import DetectionDataset, Target
from vovnet.detection.evaluation.evaluator import EvaluationStopped
from vovnet.detection.inference_mode import to_input
from vovnet.detection.training.iteration import autocast, model_targets
from vovnet.detection.training.run import Run

_WITH_LOSSES = ("rpn", "roi_heads")
"""Parts of torchvision's two-stage detectors that compute their losses in training mode only."""


def validation_losses(run: Run, dataset: DetectionDataset, should_stop: Callable[[], bool]) -> dict[str, float]:
    """Return the mean of each loss over the images, and their sum as ``loss``, in every process. With ``data.crop``,
    that of an image is the mean over its tiles.

    Norms and drop paths are in evaluation mode, and images have the size of an evaluation, so that the losses are those
    of the detector that is evaluated. Anchors and boxes are sampled by a seed of each image: the numbers depend neither
    on the training's random state nor on how many images a batch has.

    Raises:
        EvaluationStopped: ``should_stop`` returned True in a process.
    """
    rank, processes = distributed.rank(), distributed.world_size()
    sums: dict[str, float] = {}
    count = 0
    data = run.recipe.data
    loader = evaluation_loader(dataset, workers=data.workers, timeout=data.timeout, rank=rank, world_size=processes)
    with distributed.patience(), _computing_losses(run.eval_model), contextlib.closing(loader) as batches:
        for images, targets in batches:
            if should_stop():
                break
            torch.manual_seed(rank + processes * count)
            count += 1
            parts_of_image = list(_tiled(zip(images, targets, strict=True), data.crop))
            for image, target in parts_of_image:
                truth = {key: value.to(run.device) for key, value in _learned(target).items()}
                with torch.no_grad(), autocast(run.recipe.solver, run.device):
                    losses = run.eval_model([to_input(image, run.device)], [truth])
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + float(value) / len(parts_of_image)
    if any(distributed.gather(should_stop())):
        raise EvaluationStopped("the evaluation was stopped before its end")
    parts = distributed.gather((sums, count))
    total = sum(number for _, number in parts)
    names = dict.fromkeys(name for part, _ in parts for name in part)
    means = {name: sum(part.get(name, 0.0) for part, _ in parts) / total for name in names}
    return {"loss": sum(means.values()), **means}


def _tiled(samples: Iterable[tuple[Tensor, Target]], side: int | None) -> Iterator[tuple[Tensor, Target]]:
    """Yield samples, or their tiles if there is a side of these."""
    for sample in samples:
        yield from [sample] if side is None else tiles_of(sample, side)


def _learned(target: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what a training would learn from: no crowds, and no boxes without area."""
    boxes = target["boxes"].as_subclass(Tensor)
    kept = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    if "iscrowd" in target:
        kept &= ~target["iscrowd"].bool()
    return {key: value[kept] for key, value in model_targets(target).items()}


@contextlib.contextmanager
def _computing_losses(detector: nn.Module) -> Iterator[None]:
    """Let a detector return losses while its layers are in evaluation mode; restore all modes afterwards."""
    modes = {module: module.training for module in detector.modules()}
    detector.eval()
    detector.training = True
    for name in _WITH_LOSSES:
        part = getattr(detector, name, None)
        if isinstance(part, nn.Module):
            part.training = True
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
