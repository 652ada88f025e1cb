"""OKS against pycocotools as its own demo uses it."""

from __future__ import annotations

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.evaluation.coco_eval import KEYPOINT_METRICS, CocoEvaluator, default_sigmas
from vovnet.detection.evaluation.evaluator import evaluate
from vovnet.detection.evaluation.tables import format_metrics
from vovnet.errors import InputError
from vovnet.results.detections import ImageDetections

SIZE = (240, 320)


def random_case(seed: int, count: int, images: int = 6) -> tuple[dict[str, Any], list[ImageDetections]]:
    """Ground truth with crowds and unlabelled points, and detections near it."""
    rng = np.random.default_rng(seed)
    names = [f"point {number}" for number in range(count)]
    categories = [{"id": 7, "name": "disc", "keypoints": names}, {"id": 30, "name": "bar", "keypoints": names}]
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
    found = []
    for image in range(1, images + 1):
        truth["images"].append({"id": 11 * image, "height": SIZE[0], "width": SIZE[1]})
        rows: list[tuple[list[float], int, Any, float]] = []
        for _ in range(int(rng.integers(0, 6))):
            x, y, w, h = *rng.uniform(0, 150, 2), *rng.uniform(20, 140, 2)
            places = rng.uniform((x, y), (x + w, y + h), (count, 2))
            visible = rng.choice([0, 1, 2], count) if rng.random() < 0.85 else np.zeros(count)
            flat = np.concatenate((places, visible[:, None]), axis=1)
            flat[visible == 0] = 0
            category = int(rng.choice([7, 30]))
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": 11 * image,
                    "category_id": category,
                    "bbox": [float(value) for value in (x, y, w, h)],
                    "area": float(w * h * 0.6),
                    "iscrowd": int(rng.random() < 0.1),
                    "keypoints": flat.ravel().tolist(),
                    "num_keypoints": int((visible > 0).sum()),
                }
            )
            for _ in range(int(rng.integers(0, 3))):
                moved = places + rng.normal(0, rng.choice([1, 5, 20]), places.shape)
                rows.append(([x, y, w, h], category, moved, float(rng.random())))
        points = np.array([one for _, _, one, _ in rows]).reshape(-1, count, 2)
        found.append(
            ImageDetections(
                11 * image,
                np.array([box for box, *_ in rows], dtype=np.float32).reshape(-1, 4),
                np.array([score for *_, score in rows], dtype=np.float32),
                np.array([category for _, category, *_ in rows], dtype=np.int64),
                keypoints=np.concatenate((points, np.ones((*points.shape[:2], 1))), axis=2).astype(np.float32),
                size=SIZE,
            )
        )
    return truth, found


def by_hand(truth: dict[str, Any], results: list[dict[str, Any]], sigmas: list[float]) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = copy.deepcopy(truth)
        coco.createIndex()
        judge = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "keypoints")
        judge.params.kpt_oks_sigmas = np.array(sigmas)
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return judge.stats


@pytest.mark.parametrize(("count", "sigmas"), [(17, None), (4, None), (3, [0.02, 0.3, 0.1])])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_pycocotools(count: int, sigmas: list[float] | None, seed: int, tmp_path: Path) -> None:
    truth, found = random_case(seed, count)
    evaluator = CocoEvaluator(truth, sigmas=sigmas)
    evaluator.update(found)
    metrics = evaluator.summarize()
    evaluator.write_results(tmp_path)
    results = json.loads((tmp_path / "results_keypoints.json").read_text())
    assert set(results[0]) == {"image_id", "category_id", "keypoints", "score"}
    assert len(results[0]["keypoints"]) == 3 * count
    expected = by_hand(truth, results, sigmas or default_sigmas(count))
    assert list(metrics["keypoints"]) == list(KEYPOINT_METRICS)
    np.testing.assert_array_equal(list(metrics["keypoints"].values()), expected)
    assert 0 < metrics["keypoints"]["AP"] < 1
    lines = format_metrics(metrics).splitlines()
    assert [line.split()[0] for line in lines[:4]] == ["in", "boxes", "in", "points"]


def test_sigmas() -> None:
    """COCO's for its persons (cocodataset.org/#keypoints-eval): nose, eyes, ears, shoulders, …"""
    pairs = [0.025, 0.035, 0.079, 0.072, 0.062, 0.107, 0.087, 0.089]
    assert default_sigmas(17) == pytest.approx([0.026, *(sigma for sigma in pairs for _ in range(2))])
    assert default_sigmas(4) == [0.05] * 4
    truth, found = random_case(0, 4)
    evaluator = CocoEvaluator(truth, sigmas=[0.1])
    evaluator.update(found)
    with pytest.raises(InputError, match="sigmas"):
        evaluator.summarize()


class Finder(nn.Module):
    """A detector that knows the answers, and returns what torchvision's KeypointRCNN returns."""

    def __init__(self, dataset: Any, off: float) -> None:
        super().__init__()
        self.dataset, self.off, self.at = dataset, off, 0
        self.categories = list(dataset.categories)
        self.weight = nn.Parameter(torch.zeros(1))
        self.recipe = ModelRecipe(detector="keypoint_rcnn", num_classes=1, num_keypoints=2, keypoint_sigmas=[0.1, 0.1])

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        target = self.dataset[self.at][1]
        self.at += 1
        points = torch.tensor(target["keypoints"], dtype=torch.float32)
        points[..., 0] += self.off
        points[1, :, :2] = torch.tensor([50.0, 20.0])  # in the box of the object that has no labels
        points[..., 2] = 1  # as torchvision's
        boxes = torch.tensor(target["boxes"], dtype=torch.float32)
        score = torch.full((len(boxes),), 0.9)
        labels = torch.ones(len(boxes), dtype=torch.int64)
        logits = torch.tensor([[0.0, 3.0]]).repeat(len(boxes), 1)
        return [{"boxes": boxes, "scores": score, "labels": labels, "keypoints": points, "keypoints_scores": logits}]


class Own:
    """Two images, whose objects are squares with a side of 20 pixels."""

    categories = ({"id": 5, "name": "bar", "keypoints": ["left_end", "right_end"]},)

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        points = [[[10.0 + index, 12, 2], [28, 12, 1]], [[0, 0, 0], [0, 0, 0]]]
        target = {"boxes": [[10, 10, 30, 30], [40, 10, 60, 30]], "labels": [1, 1], "keypoints": points}
        return torch.zeros(3, 64, 64), target


@pytest.mark.parametrize(("off", "ap50", "ap"), [(0.0, 1.0, 1.0), (3.0, 1.0, 0.6), (10.0, 0.0, 0.0)])
def test_by_hand(off: float, ap50: float, ap: float, tmp_path: Path) -> None:
    """OKS of a point d pixels off is exp(-d² / (2 · area · (2 · 0.1)²)): 0.755 for 3 pixels, 0.044 for 10."""
    dataset = Own()
    metrics = evaluate(Finder(dataset, off), dataset, tmp_path)
    assert metrics["keypoints"]["AP50"] == pytest.approx(ap50)
    assert metrics["keypoints"]["AP"] == pytest.approx(ap, abs=1e-6)
    results = json.loads((tmp_path / "results_keypoints.json").read_text())
    assert results[0]["keypoints"] == pytest.approx([10 + off, 12, 0.5, 28 + off, 12, 1 / (1 + np.exp(-3))], rel=1e-5)
    if off:
        return
    plain = Own()
    plain.categories = ({"id": 5, "name": "bar"},)  # type: ignore[assignment]
    finder = Finder(dataset, off)
    assert "keypoints" not in evaluate(finder, plain, tmp_path)
    assert not (tmp_path / "results_keypoints.json").exists()
