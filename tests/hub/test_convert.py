"""`vovnet convert`: published files into folders that load here, each value unchanged and used once."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pickle
import runpy
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from constructions import constructions
from huggingface_hub import ModelCard
from local_hub import Hub
from processes import forked, killed, wait_for_ever
from pytorchcv.models.vovnet import vovnet27s
from safetensors.torch import load_file
from support import contents
from timm.models import save_for_hf
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from zips import hostile_archives, zipped

from vovnet.checkpoints import sources
from vovnet.checkpoints.shapes import published_resnet_keys
from vovnet.checkpoints.sources import source_named
from vovnet.cli import main
from vovnet.detection.checkpoints.empty import empty_detector
from vovnet.detection.config.loading import load_recipe
from vovnet.detection.legacy.keys import published_detector_keys
from vovnet.errors import InputError
from vovnet.folders.claim import claimed_folder
from vovnet.folders.temporary import scratch_folder
from vovnet.hub import convert_checkpoint, load_detector, publish, verify
from vovnet.hub.classifiers import empty_network, infer_network
from vovnet.hub.manifest import read_manifest
from vovnet.vovnet import published_keys, pytorchcv_keys
from vovnet.vovnet_v2 import published_v2_keys

SLIM = "vovnet27_slim"
ANCHORS = [f"rpn.anchor_generator.cell_anchors.{i}" for i in range(5)]
WRITTEN = {"README.md", "SHA256SUMS", "config.json", "manifest.json", "model.safetensors"}
FIRST = "stem.stem_1/conv.weight"
VALUE = 2.0**-10
"""So small that no sum over it grows beyond what floats hold: convert records what the network computes."""
MAKE = Callable[[str, tuple[int, ...]], np.ndarray]


@pytest.fixture(scope="module")
def make(shared: Path) -> MAKE:
    """The rule that turns a published key and a shape into an array."""
    return functools.lru_cache(maxsize=None)(runpy.run_path(str(shared / "reference" / "rule.py"))["make"])


def golden(shared: Path, name: str) -> dict[str, tuple[tuple[int, ...], int]]:
    """Published key → shape and crc32."""
    rows = json.loads((shared / "reference" / "golden" / f"keys_{name}.json").read_text())["state_dict"]
    return {row[0]: (tuple(row[1]), row[-1]) for row in rows}


def rule_made(shared: Path, make: MAKE, name: str) -> dict[str, Tensor]:
    return {key: torch.from_numpy(make(key, shape)) for key, (shape, _) in golden(shared, name).items()}


def crc(tensor: Tensor) -> int:
    return zlib.crc32(np.ascontiguousarray(tensor.numpy()).tobytes())


def save(path: Path, value: Any, **kwargs: Any) -> Path:
    torch.save(value, path, **kwargs)
    return path


def constant(shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Tensors of one stored number each: files of any network take a few kilobytes."""
    return {
        key: torch.tensor(3)
        if key.endswith("num_batches_tracked")
        else torch.full((1,), VALUE, dtype=dtype).expand(shape)
        for key, shape in shapes.items()
    }


def published_shapes(name: str, num_classes: int = 0) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a network that timm knows, by published key."""
    model = timm.create_model(name, num_classes=num_classes, device="meta")
    ours = model.state_dict()
    kinds = {"v": published_keys, "e": published_v2_keys, "r": published_resnet_keys}
    return {theirs: tuple(ours[key].shape) for theirs, key in kinds[name[0]](model).items() if key in ours}


def detector_shapes(recipe: str, classes: int = 80) -> dict[str, tuple[int, ...]]:
    model = load_recipe(recipe, [f"model.num_classes={classes}"]).model
    detector = empty_detector(model)
    ours = detector.state_dict()
    return {t: tuple(ours[o].shape) for t, o in published_detector_keys(detector, model.backbone).items()}


def random_slim(seed: int = 3) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    model = timm.create_model(SLIM)
    state = model.state_dict()
    return {theirs: state[key] for theirs, key in published_keys(model).items()}


def refused(path: Path, tmp_path: Path, **kwargs: Any) -> str:
    """The message, after seeing that nothing was written."""
    out = tmp_path / "refused"
    with pytest.raises(InputError) as error:
        convert_checkpoint(path, out, **kwargs)
    assert not out.exists()
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def test_a_golden_detector_keeps_every_value(
    shared: Path, make: MAKE, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = golden(shared, "frcn_v39")
    file = {f"module.{key}": value for key, value in rule_made(shared, make, "frcn_v39").items()}
    path = save(tmp_path / "model_final.pth", {"model": file, "optimizer": {"lr": [0.1]}, "iteration": 180000})
    with constructions(monkeypatch, FasterRCNN) as made:
        result = convert_checkpoint(path, tmp_path / "out", expect="faster_rcnn_V_39_FPN_1x")
    assert made == {"FasterRCNN": 2}  # to recognise the file, and to load the folder that was written

    assert result.title == "Faster R-CNN V-39-FPN, 80 classes"
    assert result.name == "faster_rcnn_V_39_FPN_2x"
    assert set(result.ignored) == set(ANCHORS)
    assert "not read, beside the weights: optimizer, iteration" in result.notes
    assert str(result).count("\nignored: ") == 5

    written = load_file(tmp_path / "out" / "model.safetensors")
    model = load_recipe("faster_rcnn_V_39_FPN_2x", ["model.num_classes=80"]).model
    names = published_detector_keys(empty_detector(model), "vovnet39")
    assert set(names) | set(ANCHORS) == set(reference)
    assert sorted(names.values()) == sorted(written)
    assert {theirs: crc(written[ours]) for theirs, ours in names.items()} == {t: reference[t][1] for t in names}

    detector = load_detector(tmp_path / "out")
    assert isinstance(detector, FasterRCNN)
    categories: Any = detector.categories
    assert len(categories) == 80
    assert {entry.name for entry in (tmp_path / "out").iterdir()} == WRITTEN
    assert "license: other" in (tmp_path / "out" / "README.md").read_text()
    assert [categories[i] for i in (0, 11, 79)] == [
        {"id": 1, "name": "person"},
        {"id": 13, "name": "stop sign"},
        {"id": 90, "name": "toothbrush"},
    ]


def test_a_detector_of_other_classes_in_the_old_format(tmp_path: Path) -> None:
    """Mask R-CNN with group norm, half precision, 3 classes, torch 1.1's file format, weights alone."""
    shapes = detector_shapes("scratch_mask_rcnn_V_39_FPN_3x_gn", classes=3)
    path = save(tmp_path / "old.pth", constant(shapes, torch.float16), _use_new_zipfile_serialization=False)
    result = convert_checkpoint(path, tmp_path / "out")
    assert result.name == "scratch_mask_rcnn_V_39_FPN_3x_gn"
    assert result.ignored == {}
    assert f"float16 → float32: {len(shapes)} tensors" in result.notes
    assert any("does not name its 3 classes" in note for note in result.notes)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["categories"] == [{"id": i, "name": str(i)} for i in (1, 2, 3)]
    assert config["model"]["head_norm"] == "gn"
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in written.values()} == {torch.float32}
    assert all((value == VALUE).all() for value in written.values())


def test_a_golden_classifier_gives_the_golden_logits(shared: Path, make: MAKE, tmp_path: Path) -> None:
    path = save(tmp_path / "vovnet39_torchvision.pth", rule_made(shared, make, "cls_vovnet39"))
    result = convert_checkpoint(path, tmp_path / "out", expect="vovnet39")
    assert (result.title, result.name) == ("VoVNet-39, 1000 classes", "vovnet39")
    assert not result.ignored
    (note,) = result.notes
    assert note.startswith(f"vovnet39_torchvision.pth, SHA-256 {hashlib.sha256(path.read_bytes()).hexdigest()}: ")
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    x = (60 * np.random.default_rng(7).standard_normal((2, 3, 224, 224))).astype(np.float32)
    reference = np.load(shared / "reference" / "golden" / "cls_vovnet39.npz")
    with torch.inference_mode():
        logits = model(torch.from_numpy(x))
    torch.testing.assert_close(logits, torch.from_numpy(reference["logits"]), rtol=1e-4, atol=1e-4)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["architecture"], config["model_args"]) == ("vovnet39a", {"residual": True})
    assert config["num_classes"] == config["pretrained_cfg"]["num_classes"] == 1000
    assert config["pretrained_cfg"]["license"] == "unknown"
    assert config["pretrained_cfg"]["first_conv"] == "stem.0.conv"
    assert "vovnet39_torchvision.pth" in config["pretrained_cfg"]["description"]
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert [entry.metric_value for entry in card.data.eval_results] == [76.77]  # the file has the authors' name
    assert {entry.name for entry in (tmp_path / "out").iterdir()} == WRITTEN
    assert verify(tmp_path / "out").difference == 0


@pytest.mark.parametrize("form", ["file", "archive of the old format"])
def test_a_file_of_pytorchcv_is_told_by_its_names_and_its_checksum(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Convert a file with the checksum of the table and one with another; both keep every value."""
    torch.manual_seed(0)
    theirs = vovnet27s().state_dict()
    source = source_named("vovnet27_slim.osmr_in1k")
    assert source is not None
    path = save(tmp_path / source.file, theirs, _use_new_zipfile_serialization=form == "file")
    sha1 = hashlib.sha1(path.read_bytes()).hexdigest()
    if form != "file":
        path = path.with_name(f"{source.file}.zip")
        path.write_bytes(zipped([(source.file, path.with_suffix("").read_bytes())]))
    unknown = convert_checkpoint(path, tmp_path / "unknown")
    assert any(sha1 in note for note in unknown.notes)
    monkeypatch.setattr(sources, "IMAGENET_SOURCES", (dataclasses.replace(source, sha1=sha1),))
    known = convert_checkpoint(path, tmp_path / "known", expect=SLIM)
    assert known.name == SLIM
    assert any(source.name in note and "29.78 %" in note for note in known.notes)
    assert any("MIT" in note and "Oleg Sémery" in note for note in known.notes)

    model = timm.create_model(SLIM, num_classes=1000)
    names, ours = pytorchcv_keys(model), load_file(tmp_path / "known" / "model.safetensors")
    assert set(ours) == {names[key] for key in theirs}
    assert all(torch.equal(value, ours[names[key]]) for key, value in theirs.items())
    cards = {out: ModelCard.load(tmp_path / out / "README.md") for out in ("known", "unknown")}
    assert (cards["known"].data.license, cards["unknown"].data.license) == ("mit", "other")
    assert "MIT" not in cards["unknown"].text  # the names alone do not tell whose weights these are
    said = json.loads((tmp_path / "unknown" / "config.json").read_text())["pretrained_cfg"]["license"]
    assert said == json.loads((tmp_path / "unknown" / "manifest.json").read_text())["source"]["license"] == "not-stated"
    assert "70.22" in cards["known"].text  # 100 - 29.78
    assert "70.22" not in cards["unknown"].text
    manifest = json.loads((tmp_path / "known" / "manifest.json").read_text())
    assert (manifest["source"]["license"], manifest["source"]["file"]) == ("mit", path.name)
    config = json.loads((tmp_path / "known" / "config.json").read_text())["pretrained_cfg"]
    assert (config["license"], config["tag"], config["origin_url"]) == ("mit", "osmr_in1k", source.origin)
    verify(tmp_path / "known")
    convert_checkpoint(path, tmp_path / "part", part="backbone")  # which is not what the errors were measured on
    assert "tag" not in json.loads((tmp_path / "part" / "config.json").read_text())["pretrained_cfg"]
    assert "70.22" not in (tmp_path / "part" / "README.md").read_text()


@pytest.mark.parametrize("name", ["vovnet39", "vovnet57"])
def test_the_larger_files_of_pytorchcv_are_told_by_their_shapes(name: str) -> None:
    model = empty_network(name, 1000)
    shapes = {theirs: tuple(model.state_dict()[ours].shape) for theirs, ours in pytorchcv_keys(model).items()}
    found = infer_network(shapes)
    assert (found.name, found.num_classes, found.licence) == (name, 1000, "not-stated")
    bare = {key: shape for key, shape in shapes.items() if not key.endswith("num_batches_tracked")}
    assert infer_network(bare).name == name
    assert infer_network({key: shape for key, shape in bare.items() if "output" not in key}).num_classes == 0


@pytest.mark.parametrize("name", [SLIM, "vovnet57"])
def test_the_other_classifiers_keep_every_value(shared: Path, make: MAKE, name: str, tmp_path: Path) -> None:
    reference = golden(shared, f"cls_{name}")
    file = {f"module.{key}": value for key, value in rule_made(shared, make, f"cls_{name}").items()}
    path = save(tmp_path / "file.pth", {"epoch": 90, "arch": name, "state_dict": file})
    result = convert_checkpoint(path, tmp_path / "out")
    assert result.name == name
    written = load_file(tmp_path / "out" / "model.safetensors")
    names = published_keys(timm.create_model(name, device="meta"))
    assert sorted(names.values()) == sorted(written)
    assert {theirs: crc(written[ours]) for theirs, ours in names.items()} == {t: c for t, (_, c) in reference.items()}


def test_a_detection_backbone_has_no_classifier_and_no_counters(tmp_path: Path) -> None:
    file = {key: value for key, value in random_slim().items() if "/" in key and "num_batches" not in key}
    result = convert_checkpoint(save(tmp_path / "vovnet27_statedict_norm.pth", file), tmp_path / "out")
    assert result.title == "VoVNet-27-slim, a backbone without a classifier"
    assert any("BGR" in note for note in result.notes)
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, features_only=True)
    names, state = published_keys(timm.create_model(SLIM, device="meta")), model.state_dict()
    for theirs, value in file.items():
        ours = names[theirs].replace("stem.", "stem_").replace("stages.", "stages_")
        assert torch.equal(state[ours], value), theirs
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).num_classes == 0
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True, num_classes=5).num_classes == 5


@pytest.mark.parametrize("prefix", ["", "backbone.body.", "module."])
def test_a_resnet_backbone_says_where_its_stride_is(prefix: str, tmp_path: Path) -> None:
    shapes = {prefix + k: s for k, s in published_shapes("resnet50").items() if "num_batches" not in k}
    assert f"{prefix}stem.conv1.weight" in shapes
    assert f"{prefix}layer1.0.downsample.1.running_var" in shapes
    result = convert_checkpoint(save(tmp_path / "r50.pth", constant(shapes)), tmp_path / "out", expect="resnet50")
    assert (result.title, result.name) == ("ResNet-50, a backbone without a classifier", "resnet50")
    assert any("stride is in the 1x1" in note for note in result.notes)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert any("stride is in the 1x1" in note for note in config["pretrained_cfg"]["notes"])
    assert timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).conv1.weight.flatten()[0] == VALUE


V2 = {  # the larger ones take the same way: test_networks.py
    "ese_vovnet19b_slim_dw": "VoVNetV2-19-slim-dw",
    "ese_vovnet19b_dw": "VoVNetV2-19-dw",
    "ese_vovnet19b_slim": "VoVNetV2-19-slim",
    "ese_vovnet19b": "VoVNetV2-19",
    "ese_vovnet39b": "VoVNetV2-39 as timm has it",
    "ese_vovnet39b_all": "VoVNetV2-39",
}


@pytest.mark.parametrize(("name", "title"), V2.items())
def test_vovnet_v2_lands_in_timms_networks(name: str, title: str, tmp_path: Path) -> None:
    """Each value lands where vovnet-detectron2's name says; what the networks compute is in tests/vovnet."""
    shapes = {key: shape for key, shape in published_shapes(name).items() if "num_batches" not in key}
    numbers = {key: VALUE * (1 + i / 1024) for i, key in enumerate(shapes)}
    file = {key: torch.full((1,), numbers[key]).expand(shape) for key, shape in shapes.items()}
    result = convert_checkpoint(save(tmp_path / "v2.pth", {"model": file}), tmp_path / "out", expect=name)
    assert (result.title, result.name) == (f"{title}, a backbone without a classifier", name)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architecture"] == name
    assert config["pretrained_cfg"]["license"] == "cc-by-nc-4.0"
    assert ModelCard.load(tmp_path / "out" / "README.md").data.license == "cc-by-nc-4.0"
    assert any("SHA-256" in note and "CC BY-NC 4.0" in note for note in result.notes)
    state = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).state_dict()
    names = published_v2_keys(timm.create_model(name, device="meta"))
    assert {key: float(state[names[key]].flatten()[0]) for key in shapes} == numbers


def test_of_a_detectron2_detector_the_backbone_is_taken(tmp_path: Path) -> None:
    """Its depthwise norms stay batch norms with counters where the others are frozen (vovnet-detectron2)."""
    shapes = published_shapes("ese_vovnet19b_slim_dw")
    body = {k: s for k, s in shapes.items() if "num_batches" not in k or "pw_norm" in k}
    others = {"pixel_mean": (3, 1, 1), "backbone.fpn_lateral2.weight": (8, 112, 1, 1), "roi_heads.box_head.x": (1,)}
    file = constant({f"backbone.bottom_up.{key}": shape for key, shape in body.items()} | others)
    result = convert_checkpoint(save(tmp_path / "d2.pth", {"model": file, "__author__": "x"}), tmp_path / "out")
    assert result.name == "ese_vovnet19b_slim_dw"
    assert set(result.ignored) == set(others)
    state = load_file(tmp_path / "out" / "model.safetensors")
    counters = {key: int(value) for key, value in state.items() if key.endswith("num_batches_tracked")}
    assert {key for key, value in counters.items() if value == 3} == {
        key
        for key in counters
        if "conv_mid" in key or key in ("stem.1.bn.num_batches_tracked", "stem.2.bn.num_batches_tracked")
    }


def test_what_a_file_is_not_is_said_with_what_it_is(tmp_path: Path) -> None:
    mask_v39 = save(tmp_path / "mask.pth", constant(detector_shapes("mask_rcnn_V_39_FPN_2x")))
    message = refused(mask_v39, tmp_path, expect="mask_rcnn_V_57_FPN_2x")
    assert "is Mask R-CNN V-39-FPN, 80 classes (mask_rcnn_V_39_FPN_2x), not mask_rcnn_V_57_FPN_2x" in message
    assert "the link that is published for Mask R-CNN V-57 leads to the file of V-39" in message
    assert "not faster_rcnn_V_39_FPN_2x" in refused(mask_v39, tmp_path, expect="faster_rcnn_V_39_FPN_2x")
    assert "not mask_rcnn_vovnet39_fpn" in refused(mask_v39, tmp_path, expect="mask_rcnn_vovnet39_fpn")
    assert "not vovnet57" in refused(mask_v39, tmp_path, expect="vovnet57")
    v39 = save(tmp_path / "v39.pth", constant(published_shapes("vovnet39", 1000)))
    assert "is VoVNet-39, 1000 classes (vovnet39), not vovnet57" in refused(v39, tmp_path, expect="vovnet57.in1k")
    v2 = save(tmp_path / "v2.pth", constant(published_shapes("ese_vovnet57b_all")))
    assert "last block of a stage alone" in refused(v2, tmp_path, expect="ese_vovnet57b")
    with pytest.raises(
        InputError, match="--expect 'vovnet93' is neither a recipe nor a timm model; did you mean 'vovnet"
    ):
        convert_checkpoint(v39, tmp_path / "out", expect="vovnet93")


def test_an_expected_recipe_may_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("model: {detector: faster_rcnn, backbone: vovnet57}\n")
    path = save(tmp_path / "f.pth", constant(detector_shapes("faster_rcnn_V_57_FPN_2x")))
    assert "mine.yaml" in refused(path, tmp_path, expect=str(tmp_path / "mine.yaml"))


def test_a_detector_that_does_not_fit_names_the_way_to_its_backbone(tmp_path: Path) -> None:
    file = constant(detector_shapes("faster_rcnn_V_39_FPN_2x")) | {"roi_heads.keypoint.weight": torch.ones(2)}
    message = refused(save(tmp_path / "f.pth", file), tmp_path)
    assert "left over: roi_heads.keypoint.weight" in message
    assert "--part backbone" in message


def test_keys_that_do_not_fit_are_listed(tmp_path: Path) -> None:
    file = random_slim()
    del file["stage3.OSA3_1.layers.0.OSA3_1_0/norm.bias"], file["classifier.bias"]
    file |= {"extra": torch.zeros(1), FIRST: torch.zeros(64, 3, 7, 7)}
    message = refused(save(tmp_path / "f.pth", file), tmp_path)
    assert "is nearest to VoVNet-27-slim" in message
    assert "missing: stage3.OSA3_1.layers.0.OSA3_1_0/norm.bias, classifier.bias;" in message
    assert "left over: extra;" in message
    assert f"{FIRST} is (64, 3, 7, 7) and should be (64, 3, 3, 3)" in message


def test_a_file_of_none_of_the_forms(tmp_path: Path) -> None:
    message = refused(save(tmp_path / "f.pth", timm.create_model("resnet18").state_dict()), tmp_path)
    assert "nearest to ResNet-50" in message
    message = refused(save(tmp_path / "g.pth", {"weight": torch.zeros(3), "bias": torch.zeros(3)}), tmp_path)
    assert "holds none of the published forms (its keys begin with weight, bias)" in message


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_named(bad: float, tmp_path: Path) -> None:
    file = random_slim()
    file["classifier.bias"][7] = bad
    assert "NaN or infinity in classifier.bias;" in refused(save(tmp_path / "f.pth", file), tmp_path)


def test_whole_numbers_are_no_weights(tmp_path: Path) -> None:
    file = random_slim()
    file[FIRST] = torch.zeros(64, 3, 3, 3, dtype=torch.int64)
    assert f"{FIRST} is torch.int64" in refused(save(tmp_path / "f.pth", file), tmp_path)


def test_other_anchors_are_refused(tmp_path: Path) -> None:
    file = constant(detector_shapes("faster_rcnn_V_39_FPN_2x")) | dict.fromkeys(ANCHORS, torch.zeros(3, 4))
    assert "expected the published anchors" in refused(save(tmp_path / "f.pth", file), tmp_path)


def test_a_mixture_of_prefixes(tmp_path: Path) -> None:
    file = random_slim()
    file[f"module.{FIRST}"] = file.pop(FIRST)
    message = refused(save(tmp_path / "f.pth", file), tmp_path)
    assert "1 keys begin with 'module.'" in message
    assert "expected all or none" in message


class Evil:
    """Unpickling it would make a folder."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_would_run_code(zipped: bool, tmp_path: Path) -> None:
    file = {"model": random_slim() | {"evil": Evil(tmp_path / "trace")}}
    path = save(tmp_path / "evil.pth", file, _use_new_zipfile_serialization=zipped)
    assert "refused: it holds '" in refused(path, tmp_path)
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("kind", ["two members", "upwards", "a link", "encrypted", "a bomb that announces less"])
def test_archives_that_hold_something_else(kind: str, tmp_path: Path) -> None:
    content = save(tmp_path / "vovnet.pth", {"a": torch.ones(100)}).read_bytes()
    path = tmp_path / "vovnet.pth.zip"
    path.write_bytes(hostile_archives("vovnet.pth", content)[kind])
    assert str(path) in refused(path, tmp_path)


def test_files_that_are_no_checkpoints(tmp_path: Path) -> None:
    whole = save(tmp_path / "whole.pth", random_slim()).read_bytes()
    old = save(tmp_path / "old.pth", random_slim(), _use_new_zipfile_serialization=False).read_bytes()
    files = {
        "empty": (b"", "it is empty"),
        "page": (b"<!DOCTYPE html><html></html>", "not a PyTorch checkpoint"),
        "pickle": (pickle.dumps({"a": 1}), "not a PyTorch checkpoint"),
        "cut": (whole[: len(whole) // 2], "truncated or damaged"),
        "old_cut": (old[: len(old) - 100], "truncated or damaged"),
    }
    for name, (content, expected) in files.items():
        (tmp_path / name).write_bytes(content)
        assert expected in refused(tmp_path / name, tmp_path), name
    assert "does not exist" in refused(tmp_path / "absent.pth", tmp_path)
    (tmp_path / "folder").mkdir()
    assert "is a folder" in refused(tmp_path / "folder", tmp_path)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ([torch.zeros(2)], "got a list"),
        ({}, "got nothing"),
        ({"model": {}}, "got nothing"),
        ({"epoch": 3, FIRST: torch.zeros(1)}, "'epoch' is a int"),
        ({0: torch.zeros(1)}, "0 is a Tensor"),
        ({"model": {"a": torch.zeros(1)}, "state_dict": {"a": torch.zeros(1)}}, "both model and state_dict"),
        ({"a": torch.zeros(3).to_sparse()}, "'a' is a Tensor"),
    ],
)
def test_values_that_are_no_state_dict(value: Any, expected: str, tmp_path: Path) -> None:
    assert expected in refused(save(tmp_path / "f.pth", value), tmp_path)


def test_weights_of_the_hub_name_their_repository_and_commit(hub: Hub, tmp_path: Path) -> None:
    """model.safetensors, which each repository has, tells nobody where they come from."""
    save_for_hf(timm.create_model(SLIM, num_classes=3), str(tmp_path / "timm"), safe_serialization=True)
    hub.create("org/slim", {file.name: file.read_bytes() for file in (tmp_path / "timm").iterdir()})
    result = convert_checkpoint("org/slim", tmp_path / "out")
    name = f"org/slim@{hub.head('org/slim')}"
    assert any(note.startswith(f"{name}, SHA-256 ") for note in result.notes)
    manifest = read_manifest(tmp_path / "out").source
    assert manifest is not None
    assert manifest.file == name
    assert manifest.sha256 == hashlib.sha256((tmp_path / "timm" / "model.safetensors").read_bytes()).hexdigest()
    assert name in json.loads((tmp_path / "out" / "config.json").read_text())["pretrained_cfg"]["description"]
    assert name in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(InputError, match=name):
        publish(tmp_path / "out", "me/slim")  # others published it, so that it needs a licence


def test_a_folder_that_is_not_empty_is_kept_unless_told(tmp_path: Path) -> None:
    path, out = save(tmp_path / "f.pth", random_slim()), tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("mine")
    with pytest.raises(InputError, match="is not empty"):
        convert_checkpoint(path, out)
    assert (out / "config.json").read_text() == "mine"
    convert_checkpoint(path, out, overwrite=True)
    assert {entry.name for entry in out.iterdir()} == WRITTEN


def test_a_folder_has_one_conversion_at_a_time_and_what_a_killed_one_left_is_removed(tmp_path: Path) -> None:
    path, out = save(tmp_path / "f.pth", random_slim()), tmp_path / "out"

    def convert(say: int) -> None:
        with claimed_folder(out) as folder, scratch_folder(folder) as staged:
            (staged / "model.safetensors").write_bytes(b"half")
            wait_for_ever(say)

    with forked(convert) as (process, _):
        with pytest.raises(InputError, match="another command"):
            convert_checkpoint(path, out, overwrite=True)
        killed(process)
        assert len(list(out.iterdir())) == 2
        convert_checkpoint(path, out)
    assert {entry.name for entry in out.iterdir()} == WRITTEN


def test_a_failed_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vovnet.hub import classifier_folder

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    path, out = save(tmp_path / "f.pth", random_slim()), tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("mine")
    monkeypatch.setattr(classifier_folder, "save_for_hf", fail)
    with pytest.raises(OSError, match="No space left"):
        convert_checkpoint(path, out, overwrite=True)
    assert [(entry.name, entry.read_text()) for entry in out.iterdir()] == [("config.json", "mine")]


def test_the_name_that_it_is_stored_under_is_a_choice(tmp_path: Path) -> None:
    """The weights and what they compute are the same; nothing is written for a name that there is not."""
    path, x = save(tmp_path / "f.pth", random_slim()), torch.randn(1, 3, 64, 64)
    answers, configs = [], []
    for architecture in ("timm", "vovnet"):
        out = tmp_path / architecture
        convert_checkpoint(path, out, architecture=architecture)
        configs.append(json.loads((out / "config.json").read_text()))
        with torch.inference_mode():
            answers.append(timm.create_model(f"local-dir:{out}", pretrained=True).eval()(x))
        assert verify(out).difference == 0
    assert torch.equal(*answers)
    assert [config["architecture"] for config in configs] == ["vovnet39a", "vovnet27_slim"]
    assert configs[0]["model_args"]["residual"] is True
    assert "residual" not in configs[1].get("model_args", {})
    with pytest.raises(InputError, match="architecture must be timm or vovnet"):
        convert_checkpoint(path, tmp_path / "x", architecture="x")
    assert not (tmp_path / "x").exists()


def test_weights_that_compute_nothing_finite_leave_what_was_there(tmp_path: Path) -> None:
    """Each number is finite, and what comes of them is not."""
    file = {key: value if "num_batches" in key else torch.full_like(value, 0.5) for key, value in random_slim().items()}
    path, out = save(tmp_path / "f.pth", file), tmp_path / "out"
    with pytest.raises(InputError, match="NaN or infinity in the outputs"):
        convert_checkpoint(path, out)
    assert not out.exists() or not any(out.iterdir())
    convert_checkpoint(save(tmp_path / "good.pth", random_slim()), out)
    before = contents(out)
    with pytest.raises(InputError, match="NaN or infinity in the outputs"):
        convert_checkpoint(path, out, overwrite=True)
    assert contents(out) == before


def test_a_folder_that_held_another_model_is_of_one_piece_afterwards(tmp_path: Path) -> None:
    out = tmp_path / "out"
    convert_checkpoint(save(tmp_path / "a.pth", random_slim(1)), out)
    convert_checkpoint(save(tmp_path / "b.pth", random_slim(2)), out, overwrite=True)
    assert verify(out).difference == 0
    assert json.loads((out / "manifest.json").read_text())["source"]["file"] == "b.pth"


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "f.pth", random_slim())
    command = ["vovnet", "convert", str(tmp_path / "f.pth"), str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    printed = capsys.readouterr().out
    assert "VoVNet-27-slim, 1000 classes (vovnet27_slim)" in printed
    assert hashlib.sha256((tmp_path / "f.pth").read_bytes()).hexdigest() in printed
    assert printed.count("no licence that we know of") == 1
    monkeypatch.setattr(sys, "argv", [*command, "--overwrite", "--expect", "vovnet39"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "is VoVNet-27-slim" in error
    assert error.count("\n") == 1
