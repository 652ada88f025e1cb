"""The programs that compute COCO's numbers: pycocotools, or faster-coco-eval, which gives the same ones sooner."""

from __future__ import annotations

import contextlib
import gc
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from vovnet.detection.config.fields import Backend
from vovnet.detection.evaluation.truth import IouType, empty_coco
from vovnet.errors import InputError, absent_package, install_advice, shown

if TYPE_CHECKING:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

BACKENDS: tuple[Backend, ...] = ("pycocotools", "faster")

COUNTED = 100
"""COCO counts the best 100 detections of a category in an image."""


def check_backend(backend: str, argument: str = "backend") -> None:
    """Check the name of a backend, and that it is installed.

    Raises:
        InputError: it is unknown, or its package is missing; the message begins with ``argument``.
    """
    if backend not in BACKENDS:
        raise InputError(f"{argument}: expected {' or '.join(BACKENDS)}, got {shown(backend)}")
    if backend == "faster" and absent_package("faster_coco_eval") is not None:
        raise InputError(f"{argument}: 'faster' needs faster-coco-eval: {install_advice('faster-coco-eval')}")


def run_coco_eval(
    truth: COCO,
    results: list[dict[str, Any]],
    iou_type: IouType,
    image_ids: Sequence[int],
    sigmas: Sequence[float] = (),
    most: int = COUNTED,
    backend: Backend = "pycocotools",
) -> COCOeval:
    """Return pycocotools' ``COCOeval`` after ``summarize``, without its printing.

    With the backend ``faster`` it is faster-coco-eval's object, of which only ``cocoGt``, ``cocoDt``, ``params``,
    ``stats`` and the arrays of ``eval`` are those of pycocotools.

    Args:
        truth: from :func:`~vovnet.detection.evaluation.truth.coco_ground_truth`.
        results: COCO results. ``id``, ``area`` and ``iscrowd`` are added in place; ``loadRes`` would copy them.
        iou_type: ``bbox``, ``segm`` or ``keypoints``.
        image_ids: the images to evaluate on.
        sigmas: sigma of each keypoint.
        most: boxes and masks of a category in an image that count; COCO's 100 if it is less.
        backend: the program that computes.
    """
    if unknown := [image_id for image_id in image_ids if image_id not in truth.imgs]:
        raise InputError(f"evaluation: image {unknown[0]} is not in the ground truth ({len(unknown)} such)")
    found = empty_coco()
    for position, entry in enumerate(results):
        entry["id"] = position + 1
        entry["iscrowd"] = 0
        entry["area"] = _area(entry, iou_type)
    found.dataset = {**truth.dataset, "annotations": results}
    with _collector_paused(), contextlib.redirect_stdout(io.StringIO()):
        found.createIndex()
        evaluated = _FACTORIES[backend](truth, found, iou_type)
        evaluated.params.imgIds = list(image_ids)
        if iou_type == "keypoints":
            evaluated.params.kpt_oks_sigmas = np.array(sigmas)
        elif most > COUNTED:
            evaluated.params.maxDets = [1, 10, most]
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
    if iou_type != "keypoints" and most > COUNTED:
        evaluated.stats[0] = mean_of_counted(precision_of(evaluated))  # pycocotools takes it for 100 detections alone
    return evaluated


def _pycocotools(truth: COCO, found: COCO, iou_type: IouType) -> COCOeval:
    from pycocotools.cocoeval import COCOeval

    return COCOeval(truth, found, iou_type)


def _faster(truth: COCO, found: COCO, iou_type: IouType) -> COCOeval:
    from faster_coco_eval import COCOeval_faster

    # Its constructor asks a COCO object of keypoints for what only its own class has; later it uses pycocotools' alone.
    evaluated: Any = COCOeval_faster(iouType=iou_type)
    evaluated.cocoGt, evaluated.cocoDt = truth, found
    evaluated.params.catIds = sorted(truth.getCatIds())
    return evaluated


_FACTORIES = {"pycocotools": _pycocotools, "faster": _faster}


def _area(result: Mapping[str, Any], iou_type: IouType) -> float:
    """Return the area of a result in pixels, as pycocotools' ``loadRes`` does."""
    from pycocotools import mask as coco_mask

    if iou_type == "bbox":
        return float(result["bbox"][2] * result["bbox"][3])
    if iou_type == "segm":
        return int(coco_mask.area(result["segmentation"]))
    across, down = result["keypoints"][0::3], result["keypoints"][1::3]
    return float((max(across) - min(across)) * (max(down) - min(down)))


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Pause Python's garbage collector. It would visit torch's objects again and again while pycocotools makes
    millions of small ones, none of which is in a cycle."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def precision_of(evaluated: COCOeval) -> NDArray[np.float64]:
    """Return precision (10, 101, K) for objects of all sizes and up to 100 detections an image, 20 for keypoints."""
    return np.asarray(evaluated.eval["precision"])[:, :, :, 0, -1]


def mean_of_counted(values: NDArray[np.float64]) -> float:
    """Return the mean of the values that count, or -1 if there are none."""
    counted = values[values > -1]
    return float(counted.mean()) if counted.size else -1.0
