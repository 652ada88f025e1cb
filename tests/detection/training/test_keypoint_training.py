"""Training of Keypoint R-CNN: torchvision's losses, exact resumption, the weights that are kept, wrong data."""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
import torch
from torch import Tensor
from torchvision.models.detection import KeypointRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor

from vovnet.adapters import fpn_backbone
from vovnet.detection.checkpoints.folder import load_detector
from vovnet.detection.config.data import DataRecipe
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.config.schema import Recipe
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.data.loader import training_loader
from vovnet.detection.data.synthetic import generate_shapes
from vovnet.detection.inference_mode import to_input
from vovnet.detection.models.build import build_detector
from vovnet.detection.training.callbacks import Callback
from vovnet.detection.training.engine import train
from vovnet.detection.training.iteration import model_targets
from vovnet.detection.training.run import Run
from vovnet.detection.training.signals import TrainingInterrupted
from vovnet.errors import InputError

NAMES = ["left_end", "middle", "right_end"]


class Squares(tiny_runs.Squares):
    """Squares whose upper corners are keypoints."""

    categories = ({"id": 7, "name": "square", "keypoints": NAMES, "skeleton": [[1, 3]]},)  # type: ignore[assignment]

    def __getitem__(self, index: int) -> tuple[Any, dict[str, Any]]:
        image, target = super().__getitem__(index)
        left = 4.0 * index
        points = torch.tensor([[[left, 10, 2], [0, 0, 0], [left + 32, 10, 1]]])
        return image, target | {"keypoints": points}


def keypoint_model(**settings: Any) -> ModelRecipe:
    model = tiny_runs.tiny_model("test_resnet", box_score_thresh=0.0, detector="keypoint_rcnn", **settings)
    model.keypoint_head_convs, model.keypoint_head_channels = 1, 16
    return model


def keypoint_recipe(**settings: Any) -> Recipe:
    recipe = tiny_runs.short_recipe(**settings)
    recipe.model = keypoint_model()
    return recipe


def test_losses_are_torchvisions(tmp_path: Path) -> None:
    """torchvision's class, built by hand and fed with what its references read from the file."""
    source = generate_shapes(tmp_path, train=4, val=1, size=(64, 64), seed=3, keypoints=True)["train"]
    model = keypoint_model(num_classes=3, num_keypoints=4)
    ours = build_detector(model).train()
    backbone = fpn_backbone("test_resnet", pretrained=False, out_channels=8, norm="bn")
    theirs = KeypointRCNN(
        backbone,
        image_mean=list(backbone.mean),
        image_std=list(backbone.std),
        rpn_anchor_generator=AnchorGenerator(tuple((32 * 2**i,) for i in range(5)), ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_train=50,
        rpn_post_nms_top_n_train=20,
        box_batch_size_per_image=8,
        box_head=TwoMLPHead(8 * 49, 16),
        box_predictor=FastRCNNPredictor(16, 4),
        keypoint_head=KeypointRCNNHeads(8, (16,)),
        keypoint_predictor=KeypointRCNNPredictor(16, 4),
        min_size=64,
        max_size=64,
        _skip_resize=True,  # the resize would draw a random number
    ).train()
    theirs.load_state_dict(ours.state_dict())

    dataset = CocoDataset([source], masks=False, training=True, keypoints=True)
    data = DataRecipe(train_min_sizes=[64], train_max_size=64, flip=0.0, workers=0)
    batches = training_loader(dataset, data, batch_size=4, seed=0, stop=1)
    images, targets = next(batches)
    batches.close()
    inputs = [to_input(image, torch.device("cpu")) for image in images]
    torch.manual_seed(0)
    found = ours(inputs, [model_targets(target) for target in targets])
    torch.manual_seed(0)
    expected = theirs(inputs, [_reference_target(Path(source.annotations), int(one["image_id"])) for one in targets])
    assert set(found) == set(expected) >= {"loss_keypoint"}
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss, rtol=1e-5, atol=1e-6)


def _reference_target(annotations: Path, image_id: int) -> dict[str, Tensor]:
    """The target as torchvision's references/detection/coco_utils.py makes it; a missing list has no point."""
    entries = [one for one in json.loads(annotations.read_text())["annotations"] if one["image_id"] == image_id]
    boxes = torch.tensor([one["bbox"] for one in entries])
    boxes[:, 2:] += boxes[:, :2]
    points = np.array([one.get("keypoints", [0] * 12) for one in entries], dtype=np.float32).reshape(-1, 4, 3)
    labels = torch.tensor([one["category_id"] for one in entries])
    return {"boxes": boxes, "labels": labels, "keypoints": torch.from_numpy(points)}


class InterruptAt(Callback):
    def __init__(self, iteration: int) -> None:
        self.at = iteration

    def iteration(self, run: Run, losses: Mapping[str, float]) -> None:
        if run.iteration == self.at:
            signal.raise_signal(signal.SIGINT)


def test_a_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    """And what it leaves: numbers of keypoints, the best weights by them, the categories with their keypoints."""
    options: dict[str, Any] = {"train_dataset": Squares(), "val_dataset": Squares(), "progress": False}
    unbroken = train(keypoint_recipe(), tmp_path / "unbroken", **options)
    with pytest.raises(TrainingInterrupted):
        train(keypoint_recipe(), tmp_path / "run", callbacks=[InterruptAt(2)], **options)
    assert train(keypoint_recipe(), tmp_path / "run", resume=True, **options) == unbroken
    tiny_runs.assert_same_runs(tmp_path / "run", tmp_path / "unbroken")

    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all(row["loss_keypoint"] > 0 for row in rows if "loss" in row)
    evaluations = [row for row in rows if "box_ap" in row]
    assert set(evaluations[0]) >= {"keypoint_ap", "keypoint_ap50", "keypoint_arl", "keypoint_ar75"}
    state = torch.load(tmp_path / "run" / "last.pt", weights_only=True)
    assert state["best"] == max(row["keypoint_ap"] for row in evaluations)
    detector = load_detector(tmp_path / "run")
    assert isinstance(detector, KeypointRCNN)
    assert detector.categories == list(Squares.categories)
    assert detector.recipe.num_keypoints == 3
    assert (tmp_path / "run" / "curves.png").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_keypoints": 5}, r"model.num_keypoints: the recipe says 5, the training data has 3 keypoints"),
        ({"keypoint_sigmas": [0.1, 0.2]}, r"model.keypoint_sigmas: expected model.num_keypoints = 3 numbers"),
    ],
)
def test_recipes_that_do_not_fit(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    recipe = keypoint_recipe()
    for key, value in changes.items():
        setattr(recipe.model, key, value)
    with pytest.raises(InputError, match=words):
        train(recipe, tmp_path / "run", train_dataset=Squares(), progress=False)
    assert not (tmp_path / "run").exists()


def test_data_without_keypoints(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="train_dataset: no category names its keypoints"):
        train(keypoint_recipe(), tmp_path / "run", train_dataset=tiny_runs.Squares(), progress=False)
    source = generate_shapes(tmp_path / "data", train=2, val=1, size=(64, 64))["train"]
    recipe = keypoint_recipe()
    recipe.data.train = [source]
    with pytest.raises(InputError, match="no object has a labelled keypoint"):
        train(recipe, tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()
