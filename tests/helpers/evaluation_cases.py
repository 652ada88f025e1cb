"""Random objects and detections near them, of boxes, masks or keypoints, in COCO's form."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import nn

POINTS = 4
WIDTH, HEIGHT = 200, 150


class Nothing(nn.Module):
    """A detector that is never run."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


def _shape(kind: str, box: Any, random: np.random.Generator) -> dict[str, Any]:
    x, y, w, h = map(float, box)
    if kind == "segm":
        pixels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
        pixels[int(y) : int(y + h), int(x) : int(x + w)] = 1
        code = coco_mask.encode(pixels)
        return {"segmentation": {"size": code["size"], "counts": code["counts"].decode()}}
    if kind == "keypoints":
        places = np.array([x, y]) + np.array([w, h]) * random.uniform(0, 1, (POINTS, 2))
        seen = random.integers(0, 3, (POINTS, 1))
        return {"keypoints": np.concatenate((places, seen), axis=1).ravel().tolist()}
    return {"bbox": [x, y, w, h]}


def random_case(seed: int, images: int, kind: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return ground truth with crowds and images without objects, and results with equal scores among them."""
    random = np.random.default_rng(seed)
    truth: dict[str, Any] = {
        "images": [{"id": 7 * number, "width": WIDTH, "height": HEIGHT} for number in range(1, images + 1)],
        "annotations": [],
        "categories": [{"id": number, "name": f"kind {number}"} for number in (3, 5, 90)],
    }
    results: list[dict[str, Any]] = []
    for image in truth["images"]:
        for _ in range(random.integers(0, 6)):
            box = np.array([*random.uniform(0, 100, 2), *random.uniform(3, 50, 2)])
            category = int(random.choice([3, 5]))
            common = {"image_id": image["id"], "category_id": category}
            shape = {"bbox": box.tolist()} | _shape(kind, box, random)
            entry = {"id": len(truth["annotations"]) + 1, "iscrowd": int(random.random() < 0.15), **common, **shape}
            truth["annotations"].append(entry)
            for _ in range(random.integers(0, 4)):
                near = np.abs(box + random.normal(0, 3, 4)) + 1
                score = float(random.integers(1, 20)) / 20
                found = entry["keypoints"] if kind == "keypoints" else None
                moved = _shape(kind, near, random) if found is None else {"keypoints": _moved(found, random)}
                results.append({**common, "category_id": int(random.choice([category, 5])), "score": score, **moved})
    return truth, results


def _moved(points: list[float], random: np.random.Generator) -> list[float]:
    places = np.array(points).reshape(-1, 3)
    places[:, :2] += random.normal(0, 2, (POINTS, 2))
    places[:, 2] = 1
    return [float(value) for value in places.ravel()]
