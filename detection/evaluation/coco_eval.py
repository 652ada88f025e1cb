"""COCO's metrics by pycocotools: ground truth made complete, detections gathered, numbers named."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from vovnet.detection import distributed
from vovnet.detection.evaluation.coco_tools import coco_ground_truth, run_coco_eval
from vovnet.detection.evaluation.results import ImageDetections
from vovnet.errors import InputError
from vovnet.files import atomic_path

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's twelve numbers in pycocotools' order, each in 0..1, or -1 where there is nothing to count (as in COCO)."""

IOU_TYPES = ("bbox", "segm")


class CocoEvaluator:
    """Collects detections image by image and computes COCO's numbers.

    Args:
        ground_truth: a COCO dictionary (``images``, ``annotations``, ``categories``); it is not changed. Missing
            ``id``, ``area``, ``iscrowd`` and ``bbox`` are filled in.
        iou_types: ``bbox``, ``segm`` or both; None decides by what is there: boxes always, and masks where both the
            ground truth and every detection have them.
    """

    def __init__(self, ground_truth: Mapping[str, Any], iou_types: Sequence[str] | None = None) -> None:
        if iou_types is not None and (not iou_types or not set(iou_types) <= set(IOU_TYPES)):
            raise InputError(f"iou_types: expected some of {', '.join(IOU_TYPES)}, got {list(iou_types)}")
        self.ground_truth = ground_truth
        self.asked = None if iou_types is None else [name for name in IOU_TYPES if name in iou_types]
        self.detections: dict[int, ImageDetections] = {}
        self.evaluated: dict[str, Any] = {}
        """pycocotools' ``COCOeval`` for each IoU type after :meth:`summarize`."""

    @property
    def iou_types(self) -> list[str]:
        """What is evaluated; with ``iou_types=None`` known only when all detections are in."""
        if self.asked is not None:
            return self.asked
        masks_true = any(annotation.get("segmentation") for annotation in self.ground_truth["annotations"])
        masks_found = bool(self.detections) and all(one.masks is not None for one in self.detections.values())
        return ["bbox", "segm"] if masks_true and masks_found else ["bbox"]

    def update(self, detections: Iterable[ImageDetections]) -> None:
        """Add images; one that is already there is left as it is, so duplicates count once."""
        for one in detections:
            self.detections.setdefault(one.image_id, one)

    def gather(self) -> None:
        """Bring the detections of all processes to rank 0, each image once; the others' stay what they were."""
        if distributed.world_size() == 1:
            return
        parts: list[Any] | None = [None] * distributed.world_size() if distributed.rank() == 0 else None
        dist.gather_object(list(self.detections.values()), parts)
        for part in parts or []:
            self.update(part)

    def results(self, iou_type: str) -> Iterator[dict[str, Any]]:
        """All detections in COCO's results format, by image id."""
        for image_id in sorted(self.detections):
            yield from self.detections[image_id].results(iou_type)

    def summarize(self) -> dict[str, Any]:
        """Evaluate over the images that were added.

        Returns:
            ``{"bbox": {name: value}, "segm": …, "per_class": {"bbox": [{"id", "name", "AP", "AP50", "objects"}]}}``
            with the names of :data:`METRICS`; -1 where there is nothing to count.

        Raises:
            InputError: no images were added, one is not in the ground truth, or masks are asked for but not there.
        """
        if not self.detections:
            raise InputError("evaluation: no images were evaluated; the dataset is empty")
        if "segm" in self.iou_types and any(one.masks is None for one in self.detections.values()):
            raise InputError("evaluation: 'segm' was asked for, but the detector returns no masks; leave it out")
        metrics: dict[str, Any] = {}
        per_class: dict[str, Any] = {}
        for iou_type in self.iou_types:
            truth = coco_ground_truth(self.ground_truth, iou_type)
            evaluated = run_coco_eval(truth, list(self.results(iou_type)), iou_type, sorted(self.detections))
            self.evaluated[iou_type] = evaluated
            metrics[iou_type] = dict(zip(METRICS, map(float, evaluated.stats), strict=True))
            per_class[iou_type] = _per_class(evaluated)
        return {**metrics, "per_class": per_class}

    def write_results(self, folder: Path) -> None:
        """Write ``results_bbox.json`` and, where masks were evaluated, ``results_segm.json`` (COCO's results form)."""
        for iou_type in self.iou_types:
            with atomic_path(folder / f"results_{iou_type}.json") as path, path.open("w", encoding="utf-8") as file:
                # Image by image: the whole text of COCO's val set would take hundreds of megabytes.
                file.write("[")
                separator = ""
                for image_id in sorted(self.detections):
                    for result in self.detections[image_id].results(iou_type):
                        file.write(separator + json.dumps(result, allow_nan=False))
                        separator = ",\n"
                file.write("]\n")

    def precision(self, iou_type: str) -> NDArray[np.float64]:
        """(10, 101, K): precision at IoU .50:.05:.95, recall 0:.01:1 and each category, all areas, 100 detections."""
        return np.asarray(self.evaluated[iou_type].eval["precision"])[:, :, :, 0, -1]


def evaluate_results(
    results: str | Path | Sequence[Mapping[str, Any]],
    ground_truth: str | Path | Mapping[str, Any],
    iou_type: str = "bbox",
) -> dict[str, Any]:
    """Evaluate results in COCO's form, over all images of the ground truth, as pycocotools does.

    Args:
        results: a list of ``{"image_id", "category_id", "score", "bbox" | "segmentation"}`` or a JSON file of it.
        ground_truth: a COCO dictionary or a JSON file of it.
        iou_type: ``bbox`` or ``segm``.

    Returns:
        ``{iou_type: {name: value}, "per_class": {iou_type: […]}}``; see :meth:`CocoEvaluator.summarize`.

    Raises:
        InputError: a file that cannot be read, an image or category that the ground truth lacks, a missing or wrong
            value, an RLE that does not fit its image.
    """
    if iou_type not in IOU_TYPES:
        raise InputError(f"iou_type: expected one of {', '.join(IOU_TYPES)}, got '{iou_type}'")
    truth = coco_ground_truth(_read(ground_truth, dict, "ground truth"), iou_type)
    entries = [dict(entry) for entry in _read(results, list, "results")]
    for position, entry in enumerate(entries):
        if problem := _problem(entry, truth, iou_type):
            raise InputError(f"results: entry {position}: {problem}")
    evaluated = run_coco_eval(truth, entries, iou_type, sorted(truth.imgs))
    metrics = dict(zip(METRICS, map(float, evaluated.stats), strict=True))
    return {iou_type: metrics, "per_class": {iou_type: _per_class(evaluated)}}


def _read(source: Any, kind: type, what: str) -> Any:
    value = source
    if isinstance(source, str | Path):
        try:
            value = json.loads(Path(source).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{what} '{source}': cannot be read as JSON ({error})") from error
    if kind is list and not (isinstance(value, Sequence) and all(isinstance(entry, Mapping) for entry in value)):
        raise InputError(f"{what}: expected a list of objects in COCO's results form")
    if kind is dict and not (isinstance(value, Mapping) and {"images", "annotations", "categories"} <= set(value)):
        raise InputError(f"{what}: expected an object with 'images', 'annotations' and 'categories'")
    return value


def _problem(entry: Mapping[str, Any], truth: Any, iou_type: str) -> str | None:
    from vovnet.detection.data.masks import sound_segmentation

    needed = "bbox" if iou_type == "bbox" else "segmentation"
    if missing := [key for key in ("image_id", "category_id", "score", needed) if key not in entry]:
        return f"missing '{missing[0]}'"
    if entry["image_id"] not in truth.imgs:
        return f"image_id {entry['image_id']} is not in the ground truth"
    if entry["category_id"] not in truth.cats:
        return f"category_id {entry['category_id']} is not in the ground truth"
    numbers = [entry["score"], *(entry["bbox"] if iou_type == "bbox" else [])]
    if not all(isinstance(number, int | float) and np.isfinite(number) for number in numbers):
        return f"'score' or 'bbox' is not of finite numbers: {numbers}"
    if iou_type == "bbox":
        return None if len(numbers) == 5 else f"'bbox' must be [x, y, width, height], got {entry['bbox']}"
    image = truth.imgs[entry["image_id"]]
    if not isinstance(entry["segmentation"], Mapping):
        return "'segmentation' of a result must be an RLE object"
    _, problem = sound_segmentation(entry["segmentation"], image["height"], image["width"])
    # A detector may well return a mask without a pixel: it is a wrong detection, not a wrong file.
    return None if problem in (None, "empty_mask") else f"'segmentation' does not fit the image: {problem}"


def _per_class(evaluated: Any) -> list[dict[str, Any]]:
    precision = np.asarray(evaluated.eval["precision"])[:, :, :, 0, -1]
    images = set(evaluated.params.imgIds)
    objects: dict[int, int] = {}
    for annotation in evaluated.cocoGt.anns.values():
        if annotation["image_id"] in images and not annotation["iscrowd"]:
            objects[annotation["category_id"]] = objects.get(annotation["category_id"], 0) + 1

    def mean(values: NDArray[np.float64]) -> float:
        counted = values[values > -1]
        return float(counted.mean()) if counted.size else -1.0

    return [
        {
            "id": int(category),
            "name": evaluated.cocoGt.cats[category]["name"],
            "AP": mean(precision[:, :, position]),
            "AP50": mean(precision[0, :, position]),
            "objects": objects.get(category, 0),
        }
        for position, category in enumerate(evaluated.params.catIds)
    ]


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """COCO's twelve numbers and the per-class table as text, in percent; '–' where there is nothing to count."""

    def percent(value: float) -> str:
        return f"{100 * value:5.1f}" if value >= 0 else "    –"

    kinds = {"bbox": "boxes", "segm": "masks"}
    lines = [f"{'':6}" + "".join(f"{name:>7}" for name in METRICS)]
    present = [iou_type for iou_type in IOU_TYPES if iou_type in metrics]
    for iou_type in present:
        lines.append(f"{kinds[iou_type]:6}" + "".join(f"{percent(metrics[iou_type][name]):>7}" for name in METRICS))
    tables = metrics.get("per_class", {})
    classes = tables.get(present[0], []) if present else []
    if classes:
        width = max(5, *(len(entry["name"]) for entry in classes))
        header = "".join(f"  {kinds[iou_type]} AP  AP50" for iou_type in present)
        lines += ["", f"{'class':{width}} {'objects':>8}{header}"]
        for position, entry in enumerate(classes):
            row = f"{entry['name']:{width}} {entry['objects']:>8}"
            for iou_type in present:
                one = tables[iou_type][position]
                row += f"  {percent(one['AP']):>8} {percent(one['AP50']):>5}"
            lines.append(row)
    return "\n".join(lines)
