"""Stand-ins for the files of torchvision's detectors: their names, shapes and places, with random weights."""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models import get_model
from torchvision.models._api import WeightsEnum

from vovnet.checkpoints.pickled import CheckpointFile
from vovnet.detection.checkpoints import torchvision_detectors


def random_state(name: str, seed: int = 0) -> dict[str, Tensor]:
    """Return a state dict as torchvision publishes it for a detector: random weights and norms, always the same."""
    with torch.device("meta"):
        model = get_model(name, weights=None, weights_backbone=None)
    # A prime number of values, repeated: quicker than to draw fifty million.
    values = torch.randn(999_983, generator=torch.Generator().manual_seed(seed))
    state: dict[str, Tensor] = OrderedDict()
    for key, tensor in model.state_dict().items():
        if key.endswith("num_batches_tracked"):
            if name.endswith("_v2"):  # the others have frozen norms
                state[key] = torch.tensor(7)
            continue
        state[key] = _like_trained(key, tensor, values.roll(-len(state)), logits=0.02 if "resnet50" in name else 2)
    return state


def _like_trained(key: str, tensor: Tensor, values: Tensor, logits: float) -> Tensor:
    count = tensor.numel()
    drawn = values.repeat(math.ceil(count / len(values)))[:count].reshape(tensor.shape).clone()
    if key.endswith("running_var") or (key.endswith("weight") and tensor.ndim == 1):
        return drawn.tanh() * 0.25 + 0.75
    if tensor.ndim == 1:
        return drawn * 0.1
    # Scores are of every height, and boxes keep near their anchors.
    spread = 0.003 if "bbox_pred" in key else logits if "cls_score" in key else 1
    if key.startswith("head."):
        spread = 0.02 if "_reg" in key or "ctrness" in key else 0.3 if "cls_logits" in key else 1
    return drawn * (spread * math.sqrt(2 / tensor[0].numel()))


def in_cache(monkeypatch: pytest.MonkeyPatch, states: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Let torchvision and this package find these state dicts, by the detectors' names, in torch's cache."""
    by_file = {
        torchvision_detectors.torchvision_detector(f"torchvision:{name}").file: state for name, state in states.items()
    }

    def get_state_dict(weights: WeightsEnum, *args: object, **kwargs: object) -> Mapping[str, Tensor]:
        return next(state for file, state in by_file.items() if weights.url.endswith(file.name))

    monkeypatch.setattr(WeightsEnum, "get_state_dict", get_state_dict)
    monkeypatch.setattr(torchvision_detectors.TorchvisionDetector, "_fetch", lambda self: self.file)
    monkeypatch.setattr(
        torchvision_detectors, "read_checkpoint_file", lambda path: CheckpointFile(dict(by_file[path]), ())
    )


def images(count: int = 2) -> list[Tensor]:
    """Return small images of different sizes."""
    sizes = itertools.islice(itertools.cycle([(70, 90), (96, 64), (60, 110)]), count)
    return [
        torch.rand(3, *size, generator=torch.Generator().manual_seed(seed)) for seed, size in enumerate(sizes, start=1)
    ]


def targets(batch: Iterable[Tensor], classes: int = 91) -> list[dict[str, Tensor]]:
    """Return two objects for each image, with masks and keypoints."""
    found = []
    for image in batch:
        height, width = image.shape[1:]
        masks = torch.zeros(2, height, width, dtype=torch.uint8)
        masks[0, 5:40, 8:50] = masks[1, 20:50, 30:60] = 1
        boxes = torch.tensor([[8.0, 5.0, 50.0, 40.0], [30.0, 20.0, 60.0, 50.0]])
        keypoints = torch.stack([boxes[:, :2] + 3, boxes[:, 2:] - 4], 1)[:, torch.arange(17) % 2]
        keypoints = torch.cat([keypoints, torch.ones(2, 17, 1)], 2)
        labels = torch.tensor([3, 18]) if classes > 2 else torch.tensor([1, 1])
        found.append({"boxes": boxes, "labels": labels, "masks": masks, "keypoints": keypoints})
    return found


def small(detector: Any) -> Any:
    """Let a detector work on small images and few boxes, and not resize in training, as ours do not."""
    detector.transform.min_size, detector.transform.max_size = (96,), 192
    detector.transform._skip_resize = True
    if not hasattr(detector, "roi_heads"):
        detector.detections_per_img, detector.topk_candidates = 10, 50
        return detector
    detector.rpn._post_nms_top_n = {"training": 50, "testing": 50}
    detector.roi_heads.fg_bg_sampler.batch_size_per_image = 32
    detector.roi_heads.detections_per_img = 10
    return detector
