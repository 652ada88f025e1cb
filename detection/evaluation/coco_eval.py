"""COCO's metrics by pycocotools: collect detections, compare them with the truth, name the numbers."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from vovnet.detection import distributed
from vovnet.detection.config.fields import Backend
from vovnet.detection.evaluation.backends import COUNTED, check_backend, mean_of_counted, precision_of, run_coco_eval
from vovnet.detection.evaluation.truth import IouType as IouType
from vovnet.detection.evaluation.truth import coco_ground_truth
from vovnet.errors import InputError
from vovnet.files import atomic_path
from vovnet.results.detections import ImageDetections

if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""COCO's twelve numbers in pycocotools' order, each in 0..1, or -1 if there is nothing to count (as in COCO)."""

_SIGMA = 0.05
KEYPOINT_METRICS = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")
"""COCO's ten numbers of keypoints, of up to 20 detections an image; there are none of small objects."""

IOU_TYPES: tuple[IouType, ...] = ("bbox", "segm", "keypoints")


def metric_names(iou_type: str) -> tuple[str, ...]:
    """Return the names of COCO's numbers of an IoU type, in pycocotools' order."""
    return KEYPOINT_METRICS if iou_type == "keypoints" else METRICS


def percent(value: float) -> str:
    """Return a metric as people read it, in percent with one decimal; '–' if there was nothing to count.

    Everything on the screen, in plots and on model cards is in percent. Files for programs are in 0..1, as COCO's are.
    """
    return f"{100 * value:.1f}" if value >= 0 else "–"


class CocoEvaluator:
    """Collects detections image by image and computes COCO's numbers.

    Args:
        ground_truth: a COCO dictionary (``images``, ``annotations``, ``categories``); it is not changed. Missing
            ``id``, ``area``, ``iscrowd`` and ``bbox`` are filled in.
        iou_types: Some of ``bbox``, ``segm`` and ``keypoints``. None evaluates boxes, and masks and keypoints if both
            the ground truth and every detection have them.
        sigmas: sigma of each keypoint (``model.keypoint_sigmas``); None takes :func:`default_sigmas`.
        count_all: False counts the best 100 detections of a category in an image, as COCO does; True counts all boxes
            and masks, for images with more objects.
        backend: the program that computes, ``pycocotools`` or ``faster``.
    """

    def __init__(
        self,
        ground_truth: Mapping[str, Any],
        iou_types: Sequence[IouType] | None = None,
        sigmas: Sequence[float] | None = None,
        count_all: bool = False,
        backend: Backend = "pycocotools",
    ) -> None:
        check_backend(backend)
        self.backend = backend
        if iou_types is not None and (not iou_types or not set(iou_types) <= set(IOU_TYPES)):
            raise InputError(f"iou_types: expected some of {', '.join(IOU_TYPES)}, got {list(iou_types)}")
        self.ground_truth, self.sigmas, self.count_all = ground_truth, sigmas, count_all
        self.requested = None if iou_types is None else [name for name in IOU_TYPES if name in iou_types]
        self.detections: dict[int, ImageDetections] = {}
        self.evaluated: dict[str, COCOeval] = {}
        """pycocotools' ``COCOeval`` of each IoU type, after :meth:`summarize`."""

    @property
    def iou_types(self) -> list[IouType]:
        """The IoU types to evaluate. With ``iou_types=None`` they are known once all detections have been added."""
        if self.requested is not None:
            return self.requested
        annotations, found = self.ground_truth["annotations"], self.detections.values()
        types: list[IouType] = ["bbox"]
        if (
            found
            and all(one.masks is not None for one in found)
            and any(one.get("segmentation") for one in annotations)
        ):
            types.append("segm")
        if found and all(one.keypoints is not None for one in found) and any(map(_has_keypoints, annotations)):
            types.append("keypoints")
        return types

    def update(self, detections: Iterable[ImageDetections]) -> None:
        """Add images. An image that was added before is skipped, so duplicates count once."""
        for one in detections:
            self.detections.setdefault(one.image_id, one)

    def gather(self) -> None:
        """Collect the detections of all processes in rank 0; the other processes keep their own."""
        if distributed.world_size() == 1:
            return
        parts: list[Any] | None = [None] * distributed.world_size() if distributed.rank() == 0 else None
        dist.gather_object(list(self.detections.values()), parts)
        for part in parts or []:
            self.update(part)

    def results(self, iou_type: str) -> Iterator[dict[str, Any]]:
        """Yield all detections in COCO's results format, sorted by image id."""
        for image_id in sorted(self.detections):
            yield from self.detections[image_id].results(iou_type)

    def summarize(self) -> dict[str, Any]:
        """Evaluate the images that were added.

        Returns:
            ``{"bbox": {name: value}, "segm": …, "keypoints": …, "per_class": {"bbox": [{"id", "name", "AP", "AP50",
            "objects"}], …}}`` with the names of :func:`metric_names`; -1 if there is nothing to count.

        Raises:
            InputError: no images were added, one is not in the ground truth, or masks or keypoints are requested but
                missing.
        """
        if not self.detections:
            raise InputError("evaluation: no images were evaluated; the dataset is empty")
        if "segm" in self.iou_types and any(one.masks is None for one in self.detections.values()):
            raise InputError("evaluation: 'segm' was requested, but the detector returns no masks; leave it out")
        if "keypoints" in self.iou_types and any(one.keypoints is None for one in self.detections.values()):
            raise InputError("evaluation: 'keypoints' was requested, but the detector returns none; leave it out")
        metrics: dict[str, Any] = {}
        per_class: dict[str, Any] = {}
        for iou_type in self.iou_types:
            sigmas = self._sigmas() if iou_type == "keypoints" else []
            truth = coco_ground_truth(self.ground_truth, iou_type, len(sigmas))
            most = max(len(one.scores) for one in self.detections.values()) if self.count_all else COUNTED
            results, images = list(self.results(iou_type)), sorted(self.detections)
            evaluated = run_coco_eval(truth, results, iou_type, images, sigmas, most, self.backend)
            self.evaluated[iou_type] = evaluated
            metrics[iou_type], per_class[iou_type] = _numbers(evaluated), _per_class(evaluated)
        return {**metrics, "per_class": per_class}

    def _sigmas(self) -> Sequence[float]:
        """Return the sigmas, one for each keypoint of the detections."""
        count = next(one.keypoints.shape[1] for one in self.detections.values() if one.keypoints is not None)
        sigmas = default_sigmas(count) if self.sigmas is None else self.sigmas
        if len(sigmas) != count:
            raise InputError(f"sigmas: expected one for each of the detector's {count} keypoints, got {len(sigmas)}")
        return sigmas

    def write_results(self, folder: Path) -> None:
        """Write ``results_bbox.json``, ``results_segm.json`` and ``results_keypoints.json`` in COCO's results format.

        Only what was evaluated is written.
        """
        for iou_type in self.iou_types:
            with atomic_path(folder / f"results_{iou_type}.json") as path, path.open("w", encoding="utf-8") as file:
                # One result at a time: the whole text of COCO's validation set would take hundreds of megabytes.
                file.write("[")
                separator = ""
                for result in self.results(iou_type):
                    file.write(separator + json.dumps(result, allow_nan=False))
                    separator = ",\n"
                file.write("]\n")

    def precision(self, iou_type: str) -> NDArray[np.float64]:
        """Return precision (10, 101, K) at IoU .50:.05:.95, recall 0:.01:1 and each category."""
        return precision_of(self.evaluated[iou_type])


def default_sigmas(count: int) -> list[float]:
    """Return the sigmas of keypoints that have none of their own.

    Those of 17 are COCO's, for its persons (pycocotools' ``Params.kpt_oks_sigmas``). All others are 0.05, in the middle
    of these: from 0.025 for eyes to 0.107 for hips.
    """
    from pycocotools.cocoeval import Params

    persons: list[float] = Params("keypoints").kpt_oks_sigmas.tolist()
    return persons if count == len(persons) else [_SIGMA] * count


def _has_keypoints(annotation: Mapping[str, Any]) -> bool:
    flat = annotation.get("keypoints")
    return flat is not None and any(visible > 0 for visible in flat[2::3])


def _numbers(evaluated: COCOeval) -> dict[str, float]:
    return dict(zip(metric_names(evaluated.params.iouType), map(float, evaluated.stats), strict=True))


def _per_class(evaluated: COCOeval) -> list[dict[str, Any]]:
    precision = precision_of(evaluated)
    images = set(evaluated.params.imgIds)
    objects: dict[int, int] = {}
    for annotation in evaluated.cocoGt.anns.values():
        if annotation["image_id"] in images and not annotation["iscrowd"]:
            objects[annotation["category_id"]] = objects.get(annotation["category_id"], 0) + 1

    return [
        {
            "id": int(category),
            "name": evaluated.cocoGt.cats[category]["name"],
            "AP": mean_of_counted(precision[:, :, position]),
            "AP50": mean_of_counted(precision[0, :, position]),
            "objects": objects.get(category, 0),
        }
        for position, category in enumerate(evaluated.params.catIds)
    ]
