"""A detector of each kind goes to the Hub and comes back as the same detector, with its categories, to be exported."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from local_hub import Hub
from small_networks import MODEL, detector
from support import command

from vovnet.detection import load_recipe
from vovnet.detection.checkpoints.folder import save_detector
from vovnet.detection.config.detectors import DETECTORS
from vovnet.detection.export import exported_detector
from vovnet.hub import load_detector
from vovnet.hub.manifest import PUBLISHED_FILES

CHANGES: dict[str, dict[str, str]] = {
    "faster_rcnn": {},
    "mask_rcnn": {"mask_head_convs": "1", "mask_head_channels": "16"},
    "keypoint_rcnn": {"num_keypoints": "5", "keypoint_head_convs": "1", "keypoint_head_channels": "16"},
    "retinanet": {},
    "fcos": {"fpn_channels": "64"},
}
MORE = {"mask_rcnn": {"masks"}, "keypoint_rcnn": {"keypoints", "keypoints_scores"}}
OFTEN_TESTED = ("faster_rcnn", "mask_rcnn")


def slow(kinds: Iterable[str]) -> list[Any]:
    """Return all kinds, these among the slow tests."""
    return [pytest.param(kind, marks=pytest.mark.slow) if kind in kinds else kind for kind in DETECTORS]


def categories(kind: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [{"id": 3 * number, "name": f"thing {number}"} for number in range(1, 5)]
    if kind == "keypoint_rcnn":
        found[1] |= {"keypoints": ["tip", "left", "right", "base", "end"], "skeleton": [[1, 2], [1, 3], [4, 5]]}
    return found


def made(kind: str, folder: Path) -> Any:
    """Write a small detector's folder, as a training leaves one, and return the detector."""
    name, changes = f"{kind}_vovnet39_fpn", CHANGES[kind]
    found = detector(name, **changes)
    recipe = load_recipe(name, [f"model.{key}={value}" for key, value in (MODEL | changes).items()])
    save_detector(folder, found, recipe.model, categories(kind))
    return found


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize("kind", slow(OFTEN_TESTED))
def test_up_and_down_again(kind: str, hub: Hub, tmp_path: Path) -> None:
    ours = made(kind, tmp_path / "run")
    done = command("publish", tmp_path / "run", "me/things", "--license", "apache-2.0", "--yes")
    assert done.code == 0, done.err
    files = hub.files("me/things")
    assert set(PUBLISHED_FILES) <= set(files)
    card = ModelCard(files["README.md"].decode())
    assert card.data.to_dict()["pipeline_tag"] == DETECTORS[kind].task  # type: ignore[index]
    verified = command("verify", "me/things")
    assert verified.code == 0, verified.err

    theirs: Any = load_detector("me/things")
    assert theirs.categories == categories(kind)
    assert type(theirs) is type(ours)
    image = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (expected,), (found,) = ours([image]), theirs([image])
    assert found.keys() == {"boxes", "labels", "scores"} | MORE.get(kind, set())
    assert len(found["boxes"]) > 5
    assert all(torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.usefixtures("token")
@pytest.mark.parametrize("kind", slow(DETECTORS.keys() - {"keypoint_rcnn"}))
def test_a_name_on_the_hub_is_exported_with_its_facts(kind: str, tmp_path: Path) -> None:
    made(kind, tmp_path / "run")
    assert command("publish", tmp_path / "run", "me/things", "--license", "apache-2.0", "--yes").code == 0
    file = tmp_path / "things.torchscript"
    done = command("export", "me/things", "--format", "torchscript", "--size", "96x128", "--output", file)
    assert done.code == 0, done.err
    exported = exported_detector(file)
    assert exported.categories == categories(kind)
    assert exported.recipe == load_detector("me/things").recipe
    metadata = exported.exported.metadata
    assert metadata.keypoints == (5 if kind == "keypoint_rcnn" else None)
    assert (metadata.masks is None) == (kind != "mask_rcnn")
