"""pycocotools, quiet and fed with everything that it silently relies on."""

from __future__ import annotations

import contextlib
import gc
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vovnet.errors import InputError


def coco_ground_truth(ground_truth: Mapping[str, Any], iou_type: str) -> Any:
    """A pycocotools ``COCO`` over copies of the annotations with everything that ``COCOeval`` relies on.

    Ids are given anew where one is missing, repeated or 0 (``COCOeval`` takes a match with id 0 for none). For
    ``segm``, an object without a usable mask becomes a crowd region of its box: it counts neither for nor against.
    """
    coco = _coco()
    images = {image["id"]: image for image in ground_truth["images"]}
    known = {category["id"] for category in ground_truth["categories"]}
    annotations = [
        _complete(annotation, images[annotation["image_id"]], iou_type)
        for annotation in ground_truth["annotations"]
        if annotation["image_id"] in images and annotation["category_id"] in known
    ]
    ids = {annotation.get("id") for annotation in annotations}
    if len(ids) != len(annotations) or not ids.isdisjoint({0, None}):
        for position, annotation in enumerate(annotations, start=1):
            annotation["id"] = position
    coco.dataset = {
        "images": list(images.values()),
        "annotations": annotations,
        "categories": list(ground_truth["categories"]),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return coco


def _complete(annotation: Mapping[str, Any], image: Mapping[str, Any], iou_type: str) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    from vovnet.detection.data.masks import sound_segmentation, to_rle

    filled = dict(annotation)
    filled["iscrowd"] = int(filled.get("iscrowd") or 0)
    if iou_type == "segm":
        size = (image["height"], image["width"])
        usable, _ = sound_segmentation(filled.get("segmentation"), *size)
        if usable is None:
            x, y, width, height = filled["bbox"]
            usable = [[x, y, x + width, y, x + width, y + height, x, y + height]]
            filled["iscrowd"] = 1
        rle = to_rle(usable, *size)
        filled["segmentation"] = rle
        filled.setdefault("bbox", coco_mask.toBbox(rle).tolist())
        if filled.get("area") is None:
            filled["area"] = float(coco_mask.area(rle))
    elif "bbox" not in filled:
        raise InputError(f"ground truth: annotation {filled.get('id')} has no 'bbox'; boxes cannot be evaluated on it")
    elif filled.get("area") is None:
        filled["area"] = float(filled["bbox"][2] * filled["bbox"][3])
    return filled


def run_coco_eval(truth: Any, results: list[dict[str, Any]], iou_type: str, image_ids: Sequence[int]) -> Any:
    """pycocotools' ``COCOeval`` after ``summarize``, without its printing.

    Args:
        truth: from :func:`coco_ground_truth`.
        results: COCO results; ``id``, ``area`` and ``iscrowd`` are added in place instead of in ``loadRes``'s copies.
        iou_type: ``bbox`` or ``segm``.
        image_ids: the images that count.
    """
    from pycocotools import mask as coco_mask
    from pycocotools.cocoeval import COCOeval

    if unknown := [image_id for image_id in image_ids if image_id not in truth.imgs]:
        raise InputError(f"evaluation: image {unknown[0]} is not in the ground truth ({len(unknown)} such)")
    found = _coco()
    boxes = iou_type == "bbox"
    for position, entry in enumerate(results):
        entry["id"] = position + 1
        entry["iscrowd"] = 0
        entry["area"] = entry["bbox"][2] * entry["bbox"][3] if boxes else int(coco_mask.area(entry["segmentation"]))
    found.dataset = {**truth.dataset, "annotations": results}
    with _collector_paused(), contextlib.redirect_stdout(io.StringIO()):
        found.createIndex()
        evaluated = COCOeval(truth, found, iou_type)
        evaluated.params.imgIds = list(image_ids)
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
    return evaluated


@contextlib.contextmanager
def _collector_paused() -> Iterator[None]:
    """Keep Python's garbage collector from walking over torch's objects again and again while millions of small ones
    are made; none of them is in a cycle."""
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.enable()


def _coco() -> Any:
    try:
        from pycocotools.coco import COCO
    except ImportError as error:
        raise InputError(
            "evaluation needs pycocotools, which is not installed: pip install 'vovnet[detection]'"
        ) from error
    return COCO()
