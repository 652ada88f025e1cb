"""torchvision's detectors, rebuilt on timm's backbones, compute what torchvision's own compute, to the last bit."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision
from file_server import FileServer, Served, serving
from local_hub import Hub
from torch import Tensor, nn
from torchvision.models import get_model, get_model_weights, list_models
from torchvision_files import images, in_cache, random_state, small, targets

from vovnet.checkpoints.places import TORCHVISION_PREFIX, torchvision_hint
from vovnet.classification import is_classifier
from vovnet.detection.checkpoints.folder import load_detector
from vovnet.detection.checkpoints.initialize import load_matching
from vovnet.detection.checkpoints.torchvision_detectors import (
    NETWORKS,
    TorchvisionDetector,
    our_key,
    torchvision_detector,
)
from vovnet.detection.config.detectors import DetectorName
from vovnet.detection.config.loading import load_recipe
from vovnet.detection.models.build import build_detector
from vovnet.errors import InputError
from vovnet.results.skeletons import skeletons_of
from vovnet.terminal import streams

MORE = {"mask_rcnn": {"masks"}, "keypoint_rcnn": {"keypoints", "keypoints_scores"}}
OTHERS = sorted(set(list_models(module=torchvision.models.detection)) - NETWORKS.keys())


@pytest.mark.parametrize("name", [name for name in NETWORKS if "_320_" not in name])
def test_detections_and_losses_are_torchvisions_own_to_the_last_bit(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = random_state(name)
    assert len({our_key(key, kind_of(name)) for key in state}) == len(state)
    in_cache(monkeypatch, {name: state})
    theirs: Any = get_model(name, weights="DEFAULT")
    ours: Any = load_detector(f"torchvision:{name}")
    assert settings(ours) == settings(theirs)
    theirs, ours = small(theirs), small(ours)
    assert "BSD-3-Clause" in capsys.readouterr().err
    batch = images()
    with torch.no_grad():
        expected, found = theirs.eval()(batch), ours(batch)
    assert sum(len(one["boxes"]) for one in expected) > 1
    for one, other in zip(expected, found, strict=True):
        assert one.keys() == other.keys() == {"boxes", "labels", "scores"} | MORE.get(kind_of(name), set())
        assert all(torch.equal(one[key], other[key]) for key in one)
    assert losses(ours, batch) == losses(theirs, batch)


def kind_of(name: str) -> DetectorName:
    return torchvision_detector(f"torchvision:{name}").model.detector


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    """A server of files, and an empty cache of torch."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(streams, "said", set())
    with serving() as server:
        yield server


def losses(detector: Any, batch: list[Tensor]) -> dict[str, float]:
    detector.train()
    torch.manual_seed(4)
    with torch.no_grad():
        found = detector(batch, targets(batch, classes=detector_outputs(detector)))
        return {key: float(value) for key, value in found.items()}


def detector_outputs(detector: Any) -> int:
    """Return the number of outputs with the background."""
    if hasattr(detector, "roi_heads"):
        return int(detector.roi_heads.box_predictor.cls_score.out_features)
    return int(detector.head.classification_head.num_classes)


def settings(detector: Any) -> dict[str, Any]:
    """Sizes, thresholds and numbers, and the norms with their epsilons."""
    transform = detector.transform
    common = {
        # Of several short sides, the last one is that of evaluation.
        "sizes": (transform.min_size[-1], transform.max_size, transform.image_mean, transform.image_std),
        "epsilons": [module.eps for module in detector.modules() if hasattr(module, "eps")],
    }
    if not hasattr(detector, "roi_heads"):
        numbers = (detector.score_thresh, detector.nms_thresh, detector.detections_per_img, detector.topk_candidates)
        anchors, loss = detector.anchor_generator, getattr(detector.head.regression_head, "_loss_type", None)
        return {**common, "anchors": (anchors.sizes, anchors.aspect_ratios), "numbers": numbers, "loss": loss}
    rpn, heads = detector.rpn, detector.roi_heads
    return {
        **common,
        "anchors": (rpn.anchor_generator.sizes, rpn.anchor_generator.aspect_ratios),
        "rpn": (rpn._pre_nms_top_n, rpn._post_nms_top_n, rpn.score_thresh, rpn.nms_thresh),
        "heads": (heads.score_thresh, heads.nms_thresh, heads.detections_per_img),
        "samplers": [vars(sampler) for sampler in (rpn.fg_bg_sampler, heads.fg_bg_sampler)],
    }


def test_the_small_mobilenet_has_the_same_network_and_its_own_sizes() -> None:
    name = "fasterrcnn_mobilenet_v3_large_320_fpn"
    with torch.device("meta"):
        theirs = get_model(name, weights=None, weights_backbone=None)
        ours = build_detector(torchvision_detector(f"torchvision:{name}").model, download=False)
    assert settings(ours) == settings(theirs)
    assert NETWORKS[name].items() >= NETWORKS["fasterrcnn_mobilenet_v3_large_fpn"].items()


def test_the_first_files_have_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "maskrcnn_resnet50_fpn"
    state = random_state(name)
    old = {with_old_name(key): tensor for key, tensor in state.items()}
    assert len(old) == len(state)
    assert len(old.keys() - state.keys()) == 2 * (4 + 4 + 1 + 4)
    with torch.device("meta"):
        theirs = get_model(name, weights=None, weights_backbone=None)
    missing, unexpected = theirs.load_state_dict(dict(old), strict=False, assign=True)
    assert not unexpected  # torchvision knows these names, too
    assert all("tracked" in key for key in missing)
    in_cache(monkeypatch, {name: old})
    found = load_detector(f"torchvision:{name}").state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


def with_old_name(key: str) -> str:
    key = re.sub(r"(fpn\.\w+_blocks\.\d)\.0\.", r"\1.", key).replace("rpn.head.conv.0.0.", "rpn.head.conv.")
    return re.sub(r"mask_head\.(\d)\.0\.", lambda found: f"mask_head.mask_fcn{int(found[1]) + 1}.", key)


def test_the_first_files_of_retinanet_have_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "retinanet_resnet50_fpn"
    state = random_state(name)
    numbered = re.compile(r"(head\.\w+\.conv)\.(\d)\.0\.")
    old = {numbered.sub(lambda found: f"{found[1]}.{2 * int(found[2])}.", key): one for key, one in state.items()}
    assert len(old.keys() - state.keys()) == 2 * 2 * 4
    with torch.device("meta"):
        theirs = get_model(name, weights=None, weights_backbone=None)
    missing, unexpected = theirs.load_state_dict(dict(old), strict=False, assign=True)
    assert not unexpected  # torchvision knows these names, too
    assert all("tracked" in key for key in missing)
    in_cache(monkeypatch, {name: old})
    found = load_detector(f"torchvision:{name}").state_dict()
    assert all(torch.equal(found[key], state[key]) for key in state)


def test_keypoints_are_of_persons() -> None:
    source = torchvision_detector("torchvision:keypointrcnn_resnet50_fpn")
    assert [(one["id"], one["name"]) for one in source.categories] == [(1, "person")]
    assert source.model.num_keypoints == len(source.weights.meta["keypoint_names"])
    assert source.categories[0]["keypoints"] == source.weights.meta["keypoint_names"]
    assert "keypoint AP 65.0" in str(source)


def test_keypoints_are_joined_as_a_body_is(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "keypointrcnn_resnet50_fpn"
    in_cache(monkeypatch, {name: random_state(name)})
    skeleton = skeletons_of(load_detector(f"torchvision:{name}").categories)[1]
    joints = {frozenset((skeleton.names[a], skeleton.names[b])) for a, b in skeleton.edges}
    assert len(joints) == len(skeleton.edges)
    mirror = {one: one.replace("left", "?").replace("right", "left").replace("?", "right") for one in skeleton.names}
    assert {frozenset(mirror[end] for end in joint) for joint in joints} == joints
    reached = {"nose"}
    while more := {end for joint in joints if joint & reached for end in joint} - reached:
        reached |= more
    assert reached == set(skeleton.names)
    limbs = [("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"), ("shoulder", "hip")]
    assert all({f"left_{one}", f"left_{other}"} in joints for one, other in limbs)


def test_the_first_keypoint_detector_has_norms_with_an_epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "keypointrcnn_resnet50_fpn"
    in_cache(monkeypatch, {f"{name}.COCO_LEGACY": random_state(name)})
    theirs = get_model(name, weights="COCO_LEGACY")
    assert settings(load_detector(f"torchvision:{name}.COCO_LEGACY")) == settings(theirs)


def test_counters_of_batches_that_frozen_norms_have_no_place_for_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "fasterrcnn_resnet50_fpn"
    counter = {"backbone.body.bn1.num_batches_tracked": torch.tensor(3)}
    in_cache(monkeypatch, {name: {**random_state(name), **counter}})
    assert not any("tracked" in key for key in load_detector(f"torchvision:{name}").state_dict())


def test_labels_are_cocos_ids_as_torchvision_numbers_them() -> None:
    source = torchvision_detector("torchvision:fasterrcnn_resnet50_fpn")
    assert [one["id"] for one in source.categories] == list(range(1, 91))
    names = get_model_weights(source.name)["COCO_V1"].meta["categories"]
    assert names == ["__background__", *(one["name"] for one in source.categories)]


@pytest.mark.parametrize("given", ["fasterrcnn_resnet50_fpn_v2", "fasterrcnn_resnet50_fpn_v2.COCO_V1"])
def test_without_a_name_the_default_weights_are_taken(given: str) -> None:
    source = torchvision_detector(f"torchvision:{given}")
    assert source.weights is get_model_weights("fasterrcnn_resnet50_fpn_v2")["COCO_V1"]
    assert "46.7" in str(source)


@pytest.mark.parametrize("given", [*OTHERS, "", "resnet50", "maskrcnn_resnet50_fpn_v3", "../weights", "coco_v1"])
def test_other_names_are_refused_with_the_list(given: str) -> None:
    with pytest.raises(InputError) as refused:
        load_detector(f"torchvision:{given}")
    assert all(name in str(refused.value) for name in NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_forgotten_prefix_is_named_wherever_a_detector_is(name: str, hub: Hub) -> None:
    for given in (name, f"{name}.COCO_V1", f"{name[:-1]}x"):
        for call in (
            lambda given=given: load_detector(given),
            lambda given=given: load_matching(nn.Module(), given),
            lambda given=given: is_classifier(given),  # whether `vovnet predict` shall classify
        ):
            with pytest.raises(InputError, match=f"'{TORCHVISION_PREFIX}[a-z]+_") as refused:
                call()
            assert given in str(refused.value)
            assert f"'{TORCHVISION_PREFIX}{name}'" in str(refused.value) or given.endswith("x")
    assert hub.log() == []


@pytest.mark.parametrize("name", ["fasterrcnn", "ssd300_vgg16", "fasterrcnn_vovnet39_fpn", "resnet50_v", "a"])
def test_other_names_get_no_prefix(name: str) -> None:
    assert torchvision_hint(name) == ""


def test_other_weights_and_revisions_are_refused() -> None:
    with pytest.raises(InputError, match="COCO_V1"):
        load_detector("torchvision:fasterrcnn_resnet50_fpn.IMAGENET1K_V1")
    with pytest.raises(InputError, match="revision"):
        load_detector("torchvision:fasterrcnn_resnet50_fpn", revision="main")


def test_weights_of_another_network_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "fasterrcnn_resnet50_fpn"
    state = random_state(name)
    del state["rpn.head.cls_logits.weight"]
    in_cache(monkeypatch, {name: state})
    with pytest.raises(InputError, match="cls_logits"):
        load_detector(f"torchvision:{name}")


def stored(content: dict[str, Tensor]) -> tuple[bytes, str]:
    """Return a small file of weights, and its name with its checksum, as torchvision's are called."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    data = buffer.getvalue()
    return data, f"small_coco-{hashlib.sha256(data).hexdigest()[:8]}.pth"


def published_at(url: str, name: str = "maskrcnn_resnet50_fpn") -> TorchvisionDetector:
    source = torchvision_detector(f"torchvision:{name}")
    weights: Any = SimpleNamespace(url=url, name="COCO_V1", meta=source.weights.meta)
    return TorchvisionDetector(source.name, weights)


def test_the_file_is_downloaded_once_and_checked_each_time(files: FileServer, capsys: Any) -> None:
    content = {"roi_heads.mask_head.mask_fcn1.weight": torch.ones(2, 3)}
    data, name = stored(content)
    source = published_at(files.put(name, data))
    for _ in range(2):
        (key, tensor), *_ = source.tensors().items()
        assert key == "roi_heads.mask_head.0.0.weight"
        assert torch.equal(tensor, torch.ones(2, 3))
    assert [(seen.path, seen.status) for seen in files.log] == [(f"/{name}", 200)]
    assert "BSD-3-Clause" in capsys.readouterr().err
    source.file.write_bytes(data + b"x")
    with pytest.raises(InputError, match=re.escape(str(source.file))):
        source.tensors()


@pytest.mark.parametrize("status", [200, 403, 404, 503])
def test_a_source_that_does_not_answer_with_the_file_ends_in_one_line(files: FileServer, status: int) -> None:
    url = files.put("small_coco-01234567.pth", Served(b"something else", status=status))
    with pytest.raises(InputError) as refused:
        published_at(url).tensors()
    assert "\n" not in str(refused.value)
    assert ("SHA-256" if status == 200 else url) in str(refused.value)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_dead_link_names_other_sources_with_their_commands(files: FileServer, name: str) -> None:
    url = files.put("small_coco-01234567.pth", Served(b"gone", status=404))
    with pytest.raises(InputError) as refused:
        published_at(url, name).tensors()
    assert "`vovnet weights`" in str(refused.value)
    (recipe,) = re.findall(r"`vovnet train (\w+)`", str(refused.value))
    assert load_recipe(recipe).model.detector == kind_of(name)
    assert load_recipe(recipe).init is None


def test_a_pickle_that_would_run_code_is_refused(files: FileServer) -> None:
    data = pickle.dumps({"weight": os.system})
    url = files.put(f"small_coco-{hashlib.sha256(data).hexdigest()[:8]}.pth", data)
    with pytest.raises(InputError):
        published_at(url).tensors()
