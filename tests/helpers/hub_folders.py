"""Folders as `vovnet convert` and `vovnet train` leave them, small, for the tests of the way to the Hub."""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

SLIM = "vovnet27_slim"
CLASSES = 7

RUN_RECIPE = """
model: {detector: mask_rcnn, backbone: vovnet27_slim, fpn_channels: 16, box_representation_size: 32,
  mask_head_channels: 8, mask_head_convs: 1, num_classes: 2, min_size: 64, max_size: 96, box_score_thresh: 0.0}
data:
  train: [{images: /home/somebody/secret/images, annotations: /home/somebody/secret/train.json}]
  val: [{images: /home/somebody/secret/images, annotations: /home/somebody/secret/val.json}]
solver: {base_lr: 0.015, batch_size: 4, max_iterations: 1200, steps: [800, 1100], weight_decay: 0.0002}
init: /home/somebody/secret/start
"""
SECRETS = ("somebody", "secret", "/home/", "/tmp/")
"""Texts that nothing uploaded may contain; the folders of the tests also lie below /tmp or the like."""

RUN_METRICS: list[dict[str, Any]] = [
    {"iteration": 20, "loss": 1.5, "lr": 0.01},
    {"iteration": 400, "box_ap": 0.3, "box_ap50": 0.5, "box_aps": -1.0, "mask_ap": 0.25, "mask_ap50": 0.45},
    {"iteration": 800, "box_ap": 0.3214, "box_ap50": 0.55, "box_aps": -1.0, "mask_ap": 0.2875, "mask_ap50": 0.5},
    {"iteration": 1200, "box_ap": 0.35, "box_ap50": 0.6, "box_aps": -1.0, "mask_ap": 0.28, "mask_ap50": 0.49},
]
"""The third row is the one that a run of a Mask R-CNN keeps its weights by: the best mask AP."""


@dataclass(frozen=True)
class Made:
    """A folder that `vovnet convert` wrote."""

    file: Path
    """The published file."""
    folder: Path
    name: str
    printed: str
    """The text that the conversion printed."""


def write_run(folder: Path, categories: list[dict[str, Any]], recipe: str = RUN_RECIPE) -> Path:
    """Leave in ``folder`` what `vovnet train` leaves, and files that nobody may upload; the weights are random."""
    from vovnet.detection.checkpoints.folder import save_detector
    from vovnet.detection.config.loading import load_recipe
    from vovnet.detection.models.build import build_detector

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(recipe)
    model = load_recipe(folder / "recipe.yaml").model
    torch.manual_seed(0)
    detector = build_detector(model, download=False).eval()
    save_detector(folder, detector, model, categories)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in RUN_METRICS))
    for name in ("last.pt", "best.pt"):
        torch.save({"model": {}, "optimizer": {}}, folder / name)
    (folder / "old.pkl").write_bytes(pickle.dumps({"a": 1}))
    (folder / "curves.png").write_bytes(b"\x89PNG")
    (folder / ".env").write_text("HF_TOKEN=hf_secret")
    (folder / "events").mkdir(exist_ok=True)
    (folder / "events" / "config.json").write_text("{}")
    return folder


def write_published(path: Path, name: str, num_classes: int) -> Path:
    """A classifier's file under its published names, with random weights."""
    from vovnet.vovnet import published_keys

    torch.manual_seed(1)
    model = timm.create_model(name, num_classes=num_classes)
    state = model.state_dict()
    for key, value in state.items():  # the norms and biases of a new network say nothing
        if value.dim() == 1:
            value.add_(0.2 * torch.rand_like(value) - (0.1 if key.endswith(("bias", "mean")) else 0))
    torch.save({theirs: state[ours] for theirs, ours in published_keys(model).items()}, path)
    return path


def converted(folder: Path, name: str, num_classes: int, architecture: str = "timm") -> Made:
    """Convert a new classifier's file into ``folder/out``."""
    from vovnet.hub import convert_checkpoint

    file = write_published(folder / f"{name}.pth", name, num_classes)
    conversion = convert_checkpoint(file, folder / "out", architecture=architecture)
    return Made(file, folder / "out", name, str(conversion))


def sum_anew(folder: Path) -> None:
    """Make ``SHA256SUMS`` fit what the folder holds now, as whoever changes files on purpose would."""
    sums = (folder / "SHA256SUMS").read_text().split()[1::2]
    lines = (f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in sums)
    (folder / "SHA256SUMS").write_text("".join(lines))


def edit_json(path: Path, change: Callable[[Any], Any]) -> None:
    """Change a JSON file in place."""
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def flip_a_bit(path: Path, position: int | None = None) -> None:
    """Flip the lowest bit of a file's byte, the middle one if none is said."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if position is None else position] ^= 1
    path.write_bytes(data)
