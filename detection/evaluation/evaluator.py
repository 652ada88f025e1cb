"""Evaluation of a detector on a dataset: run it, gather, compute COCO's numbers, write what they came from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vovnet.detection import distributed
from vovnet.detection.data.loader import evaluation_loader
from vovnet.detection.evaluation.coco_eval import METRICS, CocoEvaluator, evaluate_results, format_metrics
from vovnet.detection.evaluation.results import box_form, encode_masks, image_detections
from vovnet.detection.progress import progress_bar
from vovnet.detection.training.rules import conventions_of
from vovnet.errors import InputError
from vovnet.files import write_json

__all__ = ["METRICS", "CocoEvaluator", "evaluate", "evaluate_results", "format_metrics"]


def evaluate(
    detector: nn.Module,
    dataset: Any,
    output: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    batch_size: int = 1,
    workers: int = 0,
    iou_types: Sequence[str] | None = None,
    progress: bool = False,
) -> dict[str, Any]:
    """Compute COCO's numbers of a detector on a dataset.

    In a torch.distributed group every process takes its share of the images, rank 0 evaluates and writes, and all
    return the same. The detector comes back in the mode (train or eval) and on the device that it had.

    Args:
        detector: a torchvision detector; its ``categories``, if it has them, must be the dataset's.
        dataset: follows the protocol of :mod:`vovnet.detection.data`.
        output: a folder for ``metrics.json``, ``results_bbox.json``, ``results_segm.json`` and
            ``precision_recall.png``; None writes nothing.
        device: where to run; None is where the detector is.
        batch_size: images at a time, in each process.
        workers: loader processes of each process.
        iou_types: ``bbox``, ``segm`` or both; None takes boxes, and masks where detector and data have them.
        progress: show a bar on stderr (rank 0 only).

    Returns:
        ``{"bbox": {…}, "segm": {…}, "per_class": {"bbox": [{"id", "name", "AP", "AP50", "objects"}], …}}`` with the
        names of :data:`METRICS`, in 0..1, and -1 where there is nothing to count. ``segm`` only where evaluated.

    Raises:
        InputError: the dataset is empty, the categories differ, or the detector's output does not fit them.
        OSError: ``output`` cannot be written.
    """
    if len(dataset) == 0:
        raise InputError("evaluate: the dataset has no images; check its annotation file")
    categories = _matching_categories(detector, dataset)
    truth = getattr(dataset, "ground_truth", None)
    collected: list[dict[str, Any]] = []
    evaluator = CocoEvaluator(truth or {"images": [], "annotations": [], "categories": []}, iou_types)
    category_ids = [int(category["id"]) for category in categories]
    to_xywh = box_form(detector)
    with inference(detector, device) as place:
        batches = evaluation_loader(
            dataset,
            batch_size=batch_size,
            workers=workers,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )
        for images, targets in progress_bar(batches, "evaluate", "batch", shown=progress and distributed.rank() == 0):
            for image, target in zip(images, targets, strict=True):
                check_shape(detector, int(image.shape[-2]), int(image.shape[-1]), f"image {int(target['image_id'])}")
            outputs = detector([to_input(image, place) for image in images])
            for image, target, found in zip(images, targets, outputs, strict=True):
                size = (int(image.shape[-2]), int(image.shape[-1]))
                evaluator.update([image_detections(found, int(target["image_id"]), size, category_ids, to_xywh)])
                if truth is None:
                    collected.append(_truth_of_image(target, size, [int(one["id"]) for one in dataset.categories]))
    if truth is None:
        evaluator.ground_truth = _join(distributed.gather(collected), dataset.categories)
    evaluator.gather()
    return _on_main(lambda: _finish(evaluator, None if output is None else Path(output)))


def _finish(evaluator: CocoEvaluator, output: Path | None) -> dict[str, Any]:
    metrics = evaluator.summarize()
    if output is not None:
        from vovnet.detection.evaluation.plots import plot_precision_recall

        evaluator.write_results(output)
        plot_precision_recall(evaluator, output / "precision_recall.png")
        if "segm" not in metrics:
            (output / "results_segm.json").unlink(missing_ok=True)  # of a former evaluation
        # Last, so that whoever finds it finds everything.
        write_json(output / "metrics.json", metrics)
    return metrics


def _on_main(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Run something on rank 0 and return its value, or raise its error, in every process."""
    value: dict[str, Any] | None = None
    error: Exception | None = None
    if distributed.rank() == 0:
        try:
            value = work()
        except Exception as raised:
            # The other processes wait for this one's word and would otherwise wait forever.
            error = raised
    value, error = distributed.from_main((value, error)) if distributed.world_size() > 1 else (value, error)
    if error is not None:
        raise error
    assert value is not None
    return value


def _matching_categories(detector: nn.Module, dataset: Any) -> list[Mapping[str, Any]]:
    """The categories in the order of the detector's labels.

    Raises:
        InputError: the detector's differ from the dataset's in an id or a name; the message lists the differences.
    """
    ours: list[Mapping[str, Any]] = list(dataset.categories)
    theirs: list[Mapping[str, Any]] | None = getattr(detector, "categories", None)
    if theirs is None:
        return ours
    names = names_matter(detector)
    data = {int(one["id"]): str(one["name"]) for one in ours}
    known = {int(one["id"]): str(one["name"]) for one in theirs}
    differences = [f"{key} '{known[key]}' only in the detector" for key in known if key not in data]
    differences += [f"{key} '{data[key]}' only in the data" for key in data if key not in known]
    differences += [
        f"{key} is '{known[key]}' in the detector and '{data[key]}' in the data"
        for key in known
        if names and key in data and data[key] != known[key]
    ]
    if differences:
        listed = "; ".join(differences[:5]) + (f"; and {len(differences) - 5} more" if len(differences) > 5 else "")
        raise InputError(
            f"categories: the detector's do not match the data's: {listed}; evaluate on data with its categories, or "
            "train on these (recipe key 'init' starts from its weights)"
        )
    return theirs


def names_matter(detector: nn.Module) -> bool:
    """Whether a detector's categories have names that data must agree with (:mod:`vovnet.detection.training.rules`)."""
    recipe: Any = getattr(detector, "recipe", None)
    return recipe is None or conventions_of(recipe).category_names


@contextmanager
def inference(detector: nn.Module, device: str | torch.device | None) -> Iterator[torch.device]:
    """Eval mode without gradients on a device; every module's mode and the device are restored.

    Not ``inference_mode``: the anchor generator keeps tensors between calls, and training could not use such ones.
    """
    home = next(detector.parameters()).device
    place = distributed.choose_device(device, home)
    modes = [(module, module.training) for module in detector.modules()]
    detector.eval()
    if place != home:
        detector.to(place)
    try:
        with torch.no_grad():
            yield place
    finally:
        if place != home:
            detector.to(home)
        for module, training in modes:
            module.training = training


def to_input(image: Tensor, device: torch.device) -> Tensor:
    """An image as the detector takes it: float32 in [0, 1]; moved while it is still bytes."""
    image = image.to(device, non_blocking=True)
    return image if image.is_floating_point() else image.to(torch.float32) / 255


def check_shape(detector: nn.Module, height: int, width: int, name: str) -> None:
    """Refuse an image that is so long for its width that the detector's resize, which rounds down, leaves no pixel.

    Raises:
        InputError: the message begins with ``name``.
    """
    if min(height, width) < 1:
        raise InputError(f"{name}: the image has no pixels ({width}x{height})")
    longest = getattr(getattr(detector, "transform", None), "max_size", None)
    if longest is not None and min(height, width) * longest < max(height, width):
        raise InputError(
            f"{name}: {width}x{height} pixels are too narrow for a detector whose longest side is {longest}; crop it"
        )


def _truth_of_image(target: Mapping[str, Any], size: tuple[int, int], category_ids: Sequence[int]) -> dict[str, Any]:
    """COCO's entries for one image from a target of the dataset protocol; annotation ids are given when joined."""
    image_id = int(target["image_id"])
    boxes = target["boxes"].as_subclass(Tensor).to(torch.float64)
    xywh = torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2]), dim=1).tolist()
    annotations = [
        {"image_id": image_id, "category_id": category_ids[label - 1], "bbox": box}
        for label, box in zip(target["labels"].tolist(), xywh, strict=True)
    ]
    for key in ("iscrowd", "area"):
        if key in target:
            for annotation, value in zip(annotations, target[key].tolist(), strict=True):
                annotation[key] = value
    if "masks" in target:
        for annotation, counts in zip(annotations, encode_masks(target["masks"].as_subclass(Tensor)), strict=True):
            annotation["segmentation"] = {"size": list(size), "counts": counts.decode("ascii")}
    return {"image": {"id": image_id, "height": size[0], "width": size[1]}, "annotations": annotations}


def _join(parts: Iterable[Iterable[dict[str, Any]]], categories: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    by_image = {entry["image"]["id"]: entry for part in parts for entry in part}
    return {
        "images": [entry["image"] for entry in by_image.values()],
        "annotations": [annotation for entry in by_image.values() for annotation in entry["annotations"]],
        "categories": [dict(category) for category in categories],
    }
