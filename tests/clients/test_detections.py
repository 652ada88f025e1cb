"""Libraries that take a detector or what it found: metrics and tiles."""

from typing import Any

import numpy as np
import pytest
import torch
from small_networks import detector
from torch import Tensor

IMAGE = np.random.default_rng(0).integers(0, 255, (120, 200, 3), dtype=np.uint8)


def found(images: Any = IMAGE) -> dict[str, Tensor]:
    with torch.no_grad():
        return dict(detector()([torch.from_numpy(np.ascontiguousarray(images)).permute(2, 0, 1) / 255])[0])


@pytest.mark.parametrize("backend", ["pycocotools", "faster_coco_eval"])
def test_torchmetrics(backend: str) -> None:
    """A detector's own detections, as the truth, are all found."""
    metrics = pytest.importorskip("torchmetrics.detection")
    pytest.importorskip(backend)
    detections = found()
    truth = {name: detections[name][:5] for name in ("boxes", "labels")}
    metric = metrics.MeanAveragePrecision(backend=backend)
    metric.update([{name: value[:5] for name, value in detections.items() if name != "masks"}], [truth])
    assert metric.compute()["map"] == pytest.approx(1)


def test_sahi() -> None:
    sahi, predict = pytest.importorskip("sahi"), pytest.importorskip("sahi.predict")
    names = {str(i): f"class {i}" for i in range(5)}
    how = {"confidence_threshold": 0.0, "device": "cpu", "category_mapping": names, "image_size": 96}
    model = sahi.AutoDetectionModel.from_pretrained("torchvision", model=detector("faster_rcnn_vovnet39_fpn"), **how)
    sliced = predict.get_sliced_prediction(IMAGE, model, slice_height=96, slice_width=96, verbose=0)
    boxes = np.array([one.bbox.to_xyxy() for one in sliced.object_prediction_list])
    assert len(boxes) > 0
    assert boxes.min() >= 0
    assert boxes[:, 2].max() > 100, "objects beyond the first tile"


def test_supervision() -> None:
    supervision = pytest.importorskip("supervision")
    model = detector("faster_rcnn_vovnet39_fpn")

    def call(tile: Any) -> Any:
        with torch.no_grad():
            (one,) = model([torch.from_numpy(np.ascontiguousarray(tile)).permute(2, 0, 1) / 255])
        arrays = {name: one[name].numpy() for name in ("boxes", "scores", "labels")}
        return supervision.Detections(arrays["boxes"], confidence=arrays["scores"], class_id=arrays["labels"])

    detections = supervision.InferenceSlicer(call, slice_wh=96, overlap_wh=16)(IMAGE)
    assert detections.xyxy[:, 2].max() > 100
