"""Evaluate a detector on a dataset: run it, collect its detections, compute COCO's numbers, write the results."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert

from vovnet.detection import distributed
from vovnet.detection.config.categories import Category
from vovnet.detection.config.fields import Backend
from vovnet.detection.data.datasets import CheckedDataset, ImageIds, checked
from vovnet.detection.data.failures import loader_failures
from vovnet.detection.data.loader import evaluation_loader
from vovnet.detection.data.object_sizes import sizes_of_truth
from vovnet.detection.data.protocol import DetectionDataset, Target
from vovnet.detection.detecting.adjusting import adjusted
from vovnet.detection.detecting.runner import Runner
from vovnet.detection.evaluation.backends import check_backend
from vovnet.detection.evaluation.coco_eval import CocoEvaluator, IouType
from vovnet.detection.evaluation.explanation import analyses_of, explained, write_explanation
from vovnet.detection.evaluation.plots import plot_precision_recall
from vovnet.detection.evaluation.sources import category_names_checked, evaluation_dataset, evaluation_sources
from vovnet.detection.figures import warn_without_plot
from vovnet.detection.inference_mode import inference, input_channels, limits_of
from vovnet.detection.masks import encode_masks
from vovnet.detection.progress import progress_bar
from vovnet.errors import InputError, StoppedError
from vovnet.files import write_json
from vovnet.folders.home import expand_home
from vovnet.results.run_options import RunOptions, RunSettings


class EvaluationStopped(StoppedError):
    """An evaluation ended early because its caller's ``should_stop`` returned True."""


@loader_failures()
@distributed.lost_processes()
def evaluate(
    detector: nn.Module,
    dataset: DetectionDataset | str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
    batch_size: int = 1,
    workers: int = 0,
    timeout: float = 600,
    iou_types: Sequence[IouType] | None = None,
    backend: Backend = "pycocotools",
    progress: bool = False,
    tell_limits: bool = True,
    should_stop: Callable[[], bool] = lambda: False,
    **options: Unpack[RunOptions],
) -> dict[str, Any]:
    """Compute COCO's numbers of a detector on a dataset.

    In a torch.distributed group every process runs its share of the images, rank 0 evaluates and writes, and all
    processes return the same. Afterwards the detector has the mode (train or eval) and the device that it had before.

    Args:
        detector: a torchvision detector. If it has ``categories``, they must be those of the dataset.
        dataset: follows the protocol of :mod:`vovnet.detection.data`. Or a folder or file of labels of any format, or
            ``hf:ORG/NAME``, as for :func:`~vovnet.detection.evaluation.sources.evaluation_sources`.
        output: a folder for ``metrics.json``, ``results_bbox.json``, ``results_segm.json``, ``results_keypoints.json``
            and ``precision_recall.png``, and for what is explained below also ``thresholds.csv``, ``confusion.csv``,
            ``confusion.png``, ``worst.png`` (the twenty images with the most errors) and ``report.html`` (all of it);
            None writes nothing, and explains nothing.
        device: where to run; None leaves the detector where it is.
        batch_size: images per batch in each process.
        workers: loader processes of each process.
        timeout: seconds to wait for a batch from the loader processes; 0 waits forever.
        iou_types: some of ``bbox``, ``segm`` and ``keypoints``; None evaluates boxes, and masks and keypoints if
            detector and data have them.
        backend: the program that computes COCO's numbers: ``pycocotools``, or ``faster`` for faster-coco-eval, which
            gives the same ones (extra ``faster-coco-eval``).
        progress: show a progress bar on stderr (rank 0 only).
        tell_limits: warn if images reach the detector's limit of detections, or are shrunk too far for their objects.
        should_stop: asked before each batch; if it returns True in one process, all stop.
        **options: change the detector for this call, or cut images into tiles:
            :class:`~vovnet.results.run_options.RunOptions`. COCO's numbers count the best 100 detections of a
            category in an image; with a larger ``max_detections``, or tiles, they count as many as are there.

    Returns:
        ``{"bbox": {…}, "segm": {…}, "keypoints": {…}, "per_class": {"bbox": [{"id", "name", "AP", "AP50", "objects"}],
        …}}`` with the names of :func:`~vovnet.detection.evaluation.coco_eval.metric_names`, in 0..1, or -1 if there is
        nothing to count; ``segm`` and ``keypoints`` only if they were evaluated. With ``output`` also what
        :func:`~vovnet.detection.evaluation.explanation.explained` adds.

    Raises:
        InputError: the dataset is empty, the categories differ, or the detector's output does not fit them.
        EvaluationStopped: ``should_stop`` returned True; nothing has been written.
        OSError: ``output`` cannot be written.
        LoaderError: a loader process died, or no batch arrived within ``timeout``.
        ProcessLostError: another process of the group ended or does not answer.
    """
    settings = RunSettings(**options)
    check_backend(backend)
    if isinstance(dataset, str | os.PathLike):
        dataset = evaluation_dataset(detector, evaluation_sources(os.fspath(dataset)))
    dataset = checked(dataset, channels=input_channels(detector))
    if len(dataset) == 0:
        raise InputError("evaluate: the dataset has no images; check its annotation file")
    categories = _matching_categories(detector, dataset)
    truth = dataset.ground_truth
    ids = ImageIds(dataset, truth)
    collected: list[dict[str, Any]] = []
    nothing: dict[str, Any] = {"images": [], "annotations": [], "categories": []}
    sigmas = getattr(getattr(detector, "recipe", None), "keypoint_sigmas", None)
    evaluator = CocoEvaluator(
        truth or nothing,
        iou_types,
        sigmas,
        count_all=settings.tile is not None or bool(settings.max_detections),
        backend=backend,
    )
    category_ids = [int(category["id"]) for category in categories]
    loader = evaluation_loader(
        dataset if truth is None else dataset.without_masks(),
        batch_size=batch_size,
        workers=workers,
        timeout=timeout,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
    )
    with (
        distributed.patience(),
        adjusted(detector, settings),
        inference(detector, device) as place,
        contextlib.closing(loader) as batches,
    ):
        limits = limits_of(detector)
        run = Runner(detector, place, category_ids, settings.tiling, batch_size)
        for images, targets in progress_bar(batches, "evaluate", "batch", shown=progress and distributed.rank() == 0):
            if should_stop():
                break
            for target in targets:
                ids.add(target["image_id"], distributed.rank() + len(ids.seen) * distributed.world_size())
            numbers = [target["image_id"] for target in targets]
            found = run(images, [f"image {number}" for number in numbers], numbers)
            evaluator.update(found)
            for target, one in zip(targets, found, strict=True):
                if truth is None:
                    collected.append(_truth_of_image(target, one.size, [int(one["id"]) for one in dataset.categories]))
    if any(distributed.gather(should_stop())):  # all together, because the others would wait for this process
        raise EvaluationStopped("the evaluation was stopped before its end")
    ids.join(distributed.gather(ids.seen))
    if truth is None:
        evaluator.ground_truth = _join(distributed.gather(collected), dataset.categories)
    evaluator.gather()
    folder = None if output is None else expand_home(output)
    metrics = _on_main(lambda: _finish(evaluator, dataset, ids.seen, folder))
    if tell_limits and distributed.rank() == 0:
        own = sizes_of_truth(evaluator.ground_truth)
        if limits.median_object is None and own is not None:
            limits = replace(limits, median_object=own.median)
        limits.warn_of(list(evaluator.detections.values()))
    return metrics


def _finish(
    evaluator: CocoEvaluator, dataset: DetectionDataset, places: Mapping[int, int], output: Path | None
) -> dict[str, Any]:
    metrics = evaluator.summarize()
    if output is not None:
        analyses = analyses_of(evaluator.evaluated)
        metrics = explained(metrics, analyses)
        evaluator.write_results(output)
        for iou_type in {"segm", "keypoints"} - metrics.keys():  # an earlier evaluation may have left it
            (output / f"results_{iou_type}.json").unlink(missing_ok=True)
        # When this file is there, the results are there, too.
        write_json(output / "metrics.json", metrics)
        plot = output / "precision_recall.png"
        with warn_without_plot(plot):
            plot_precision_recall(evaluator, plot, best={kind: one.best for kind, one in analyses.items()})
        write_explanation(metrics, analyses, evaluator, dataset, places, output)
    return metrics


def _on_main(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Call a function on rank 0, and return its value or raise its error in every process."""
    value: dict[str, Any] = {}
    error: Exception | None = None
    with distributed.patience():
        if distributed.rank() == 0:
            try:
                value = work()
            except Exception as raised:
                # The other processes wait for a message from this one; without it they would wait forever.
                error = raised
    value, error = distributed.from_main((value, error))
    if error is not None:
        raise error
    return value


def _matching_categories(detector: nn.Module, dataset: CheckedDataset) -> list[Category]:
    """Return the categories in the order of the detector's labels.

    Raises:
        InputError: detector and dataset differ in an id or a name; the message lists the differences.
    """
    ours = list(dataset.categories)
    theirs: list[Category] | None = getattr(detector, "categories", None)
    if theirs is None:
        return ours
    names = category_names_checked(detector)
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


def _truth_of_image(target: Target, size: tuple[int, int], category_ids: Sequence[int]) -> dict[str, Any]:
    """Return COCO's entries for one image, made from a target of the dataset protocol, without annotation ids."""
    image_id = target["image_id"]
    boxes = target["boxes"].as_subclass(Tensor).to(torch.float64)
    xywh = box_convert(boxes, "xyxy", "xywh").tolist()
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
    if "keypoints" in target:
        for annotation, points in zip(annotations, target["keypoints"].as_subclass(Tensor).flatten(1), strict=True):
            annotation["keypoints"] = points.tolist()
    return {"image": {"id": image_id, "height": size[0], "width": size[1]}, "annotations": annotations}


def _join(parts: Iterable[Iterable[dict[str, Any]]], categories: Iterable[Category]) -> dict[str, Any]:
    by_image = {entry["image"]["id"]: entry for part in parts for entry in part}
    return {
        "images": [entry["image"] for entry in by_image.values()],
        "annotations": [annotation for entry in by_image.values() for annotation in entry["annotations"]],
        "categories": [dict(category) for category in categories],
    }
