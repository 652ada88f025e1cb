"""Random detections and objects for tests of evaluation, in COCO's form."""

from __future__ import annotations

from typing import Any

import numpy as np

from vovnet.detection.evaluation.backends import run_coco_eval
from vovnet.detection.evaluation.truth import coco_ground_truth

CLASSES = 4


def errors_of_all_kinds(seed: int, images: int = 12, ties: bool = False) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return ground truth and results: crowds, wrong classes, shifted boxes, duplicates, inventions and misses.

    The last category has no object.
    """
    random = np.random.default_rng(seed)
    truth: dict[str, Any] = {
        "images": [{"id": 3 * number, "width": 400, "height": 300} for number in range(1, images + 1)],
        "annotations": [],
        "categories": [{"id": 10 * number, "name": f"kind {number}"} for number in range(1, CLASSES + 1)],
    }
    results: list[dict[str, Any]] = []

    def found(image_id: int, category: int, box: Any) -> None:
        score = float(random.integers(1, 9) / 10 if ties else random.random())
        results.append({"image_id": image_id, "category_id": category, "bbox": list(map(float, box)), "score": score})

    for image in truth["images"]:
        for _ in range(random.integers(0, 7)):
            box = np.array([*random.uniform(0, 280, 2), *random.uniform(15, 90, 2)])
            category = int(10 * random.integers(1, CLASSES))
            entry = {"id": len(truth["annotations"]) + 1, "image_id": image["id"], "category_id": category}
            crowd = int(random.random() < 0.1)
            truth["annotations"].append(
                {**entry, "bbox": box.tolist(), "area": float(box[2] * box[3]), "iscrowd": crowd}
            )
            for shift in random.choice([0.0, 0.03, 0.4, 0.9], int(random.integers(0, 4))):
                moved = box + np.array([box[2] * shift, 0, *random.normal(0, 1, 2)])
                other = int(10 * random.integers(1, CLASSES + 1))
                found(image["id"], category if random.random() < 0.7 else other, moved)
        for _ in range(random.integers(0, 3)):
            found(image["id"], int(10 * random.integers(1, CLASSES + 1)), [*random.uniform(0, 280, 2), 20, 20])
    return truth, results


def evaluated_case(truth: dict[str, Any], results: list[dict[str, Any]]) -> Any:
    """Return pycocotools' ``COCOeval`` of boxes."""
    complete = coco_ground_truth(truth, "bbox")
    return run_coco_eval(complete, [dict(one) for one in results], "bbox", sorted(complete.imgs))


def coco_counts(evaluated: Any, position: int, threshold: float) -> tuple[int, int, int]:
    """True and false detections, and objects, of a class as pycocotools' own matches at IoU 0.5 say."""
    areas, images = len(evaluated.params.areaRng), len(evaluated.params.imgIds)
    start = position * areas * images
    true = false = objects = 0
    for one in evaluated.evalImgs[start : start + images]:
        if one is not None:
            counted = (np.array(one["dtScores"]) >= threshold) & ~one["dtIgnore"][0]
            true += int((counted & (one["dtMatches"][0] > 0)).sum())
            false += int((counted & (one["dtMatches"][0] == 0)).sum())
            objects += int((np.array(one["gtIgnore"]) == 0).sum())
    return true, false, objects
