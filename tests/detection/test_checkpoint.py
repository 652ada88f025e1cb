"""Detector folders: what is written comes back, and nothing wrong gets in."""

import dataclasses
import errno
import json
import os
import pickle
import stat
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors as hub_errors
from safetensors.torch import load_file, save_file

from vovnet.detection import checkpoint
from vovnet.detection.checkpoint import load_detector, save_detector
from vovnet.detection.detectors import build_detector
from vovnet.detection.recipe import ModelRecipe
from vovnet.errors import InputError

CATEGORIES = [{"id": 4, "name": "cat"}, {"id": 2, "name": "dog ✓", "supercategory": "animal"}]
MODEL = ModelRecipe(
    detector="mask_rcnn",
    backbone="vovnet27_slim",
    fpn_channels=16,
    box_representation_size=32,
    mask_head_channels=8,
    mask_head_convs=1,
    num_classes=2,
    min_size=64,
    max_size=96,
    box_score_thresh=0.0,
)


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    return build_detector(MODEL).eval()


@pytest.fixture(scope="module")
def saved(detector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    save_detector(folder, detector, MODEL, CATEGORIES)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy that a test may damage."""
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    return tmp_path


def edit(folder, change):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def test_round_trip_gives_equal_detections(detector, saved):
    loaded = load_detector(saved)
    assert not loaded.training
    assert loaded.categories == [{"id": 4, "name": "cat"}, {"id": 2, "name": "dog ✓"}]
    assert loaded.preprocessing["channel_order"] == "rgb"
    assert loaded.preprocessing["mean"] == pytest.approx([0.485, 0.456, 0.406])
    assert dataclasses.replace(loaded.recipe, image_mean=None, image_std=None) == MODEL
    image = torch.rand(3, 50, 70)
    with torch.no_grad():
        expected, got = detector([image])[0], loaded([image])[0]
    assert len(expected["boxes"]) > 0
    assert set(got) == {"boxes", "labels", "scores", "masks"}
    for key, value in expected.items():
        assert torch.equal(got[key], value)


def test_files_are_what_others_can_read(detector, saved):
    config = json.loads((saved / "config.json").read_text())
    assert set(config) == {"format", "format_version", "model", "categories", "preprocessing"}
    assert (config["format"], config["format_version"]) == ("vovnet-detector", 1)
    assert config["model"]["num_classes"] == 2
    assert set(config["model"]) == {field.name for field in dataclasses.fields(ModelRecipe)}
    weights = load_file(saved / "model.safetensors")
    state = detector.state_dict()
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[key], state[key]) for key in state)


def test_frozen_norms_come_back_without_a_download(tmp_path):
    model = dataclasses.replace(MODEL, detector="faster_rcnn", norm="frozen_bn", pretrained=True, trainable_stages=2)
    built = build_detector(model, download=False).eval()
    save_detector(tmp_path, built, model, CATEGORIES)
    loaded = load_detector(tmp_path)
    assert loaded.state_dict().keys() == built.state_dict().keys()
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in built.parameters()]


def test_channels_last_and_shared_tensors_are_saved(detector, tmp_path):
    torch.manual_seed(1)
    other = build_detector(MODEL).to(memory_format=torch.channels_last)
    other.roi_heads.box_head.fc7.bias = other.roi_heads.box_head.fc6.bias
    save_detector(tmp_path, other, MODEL, CATEGORIES)
    weights = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(weights[key], value) for key, value in other.state_dict().items())


def test_a_full_disk_leaves_the_old_files(detector, folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(self, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device.*model\.safetensors"):
        save_detector(folder, detector, MODEL, CATEGORIES[::-1])
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission_names_the_file(detector, tmp_path):
    tmp_path.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(PermissionError, match=r"json|safetensors"):
        save_detector(tmp_path, detector, MODEL, CATEGORIES)


def test_categories_must_fit_the_model(detector, tmp_path):
    with pytest.raises(InputError, match="num_classes = 2 of them, got 1"):
        save_detector(tmp_path, detector, MODEL, CATEGORIES[:1])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(format="other"), "'format' is 'other'"),
        (lambda c: c.update(format_version=2), "'format_version' is 2, this vovnet reads 1"),
        (lambda c: c.update(format_version=True), "'format_version' is True"),
        (lambda c: c.update(extra=1), "unknown key 'extra'"),
        (lambda c: c.pop("preprocessing"), "missing key 'preprocessing'"),
        (lambda c: c.update(model=[1]), "'model' must be an object"),
        (lambda c: c["model"].update(backbonee="x"), "unknown key 'backbonee'"),
        (lambda c: c["model"].update(fpn_channels="many"), "fpn_channels"),
        (lambda c: c["model"].update(backbone="${oc.env:HOME}"), "not allowed"),
        (lambda c: c["model"].update(num_classes=10**9), "num_classes is 1000000000, expected"),
        (lambda c: c["model"].update(rpn_head_convs=10**6), "rpn_head_convs"),
        (lambda c: c["model"].update(box_score_thresh=float("nan")), "box_score_thresh"),
        (lambda c: c["model"].update(backbone="hf-hub:someone/something"), "plain name"),
        (lambda c: c["model"].update(backbone_args={"checkpoint_path": "evil.pth"}), "checkpoint_path is not allowed"),
        (lambda c: c["model"].update(backbone_args={"layers": [10**12]}), "out of bounds"),
        (lambda c: c["model"].update(anchor_sizes=[[32]] * 1000), "at most 64"),
        (lambda c: c["model"].update(image_mean=[0.5]), r"must have model\.in_chans = 3 numbers"),
        (lambda c: c["model"].update(min_size=65), "preprocessing.min_size is 64, but the model part says 65"),
        (lambda c: c["preprocessing"].update(channel_order="bgr"), "channel_order is bgr"),
        (lambda c: c["categories"].pop(), "1 categories, but model.num_classes is 2"),
        (lambda c: c["categories"][0].update(id=2), "an id twice"),
        (lambda c: c["categories"][0].update(id="4"), "'categories' must be a list"),
    ],
)
def test_wrong_configs_are_refused(folder, change, says):
    edit(folder, change)
    with pytest.raises(InputError, match=says) as caught:
        load_detector(folder)
    assert "\n" not in str(caught.value)
    assert "config.json" in str(caught.value)


def test_large_but_allowed_numbers_take_no_memory(folder, monkeypatch):
    """They are found not to fit the weights before the detector is built."""
    edit(folder, lambda c: c["model"].update(fpn_channels=4096, box_representation_size=16384))
    devices = []
    build = checkpoint.__dict__["_shapes_without_memory"]

    def watch(config):
        devices.append(config.model.fpn_channels)
        return build(config)

    monkeypatch.setattr(checkpoint, "_shapes_without_memory", watch)
    with pytest.raises(InputError, match="weights of another model"):
        load_detector(folder)
    assert devices == [4096]


@pytest.mark.parametrize("text", ["", "{", "[1]", "\ufeff\x00", "[" * 100_000])
def test_configs_that_are_not_json(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(InputError, match=r"config\.json") as caught:
        load_detector(folder)
    assert "\n" not in str(caught.value)


def flip_a_bit(data):
    return data[:-5] + bytes([data[-5] ^ 16]) + data[-4:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:7],
        lambda data: data[: len(data) // 2],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: b"\xff" * 8 + data[8:],
        flip_a_bit,
        lambda data: pickle.dumps({"weights": 1}),
    ],
)
def test_damaged_weights_are_refused_in_one_line(folder, damage):
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"model\.safetensors") as caught:
        load_detector(folder)
    assert "\n" not in str(caught.value)


def test_weights_without_a_checksum_are_read(folder):
    path = folder / "model.safetensors"
    save_file(load_file(path), path)
    load_detector(folder)


def test_weights_of_another_model_are_counted_and_named(folder):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    missing = [key for key in sorted(tensors) if "mask_head" in key]
    for key in missing:
        del tensors[key]
    tensors["stray.weight"] = torch.zeros(1)
    tensors["roi_heads.box_head.fc6.bias"] = torch.zeros(5)
    save_file(tensors, path)
    with pytest.raises(InputError) as caught:
        load_detector(folder)
    message = str(caught.value)
    assert f"{len(missing)} missing (" in message
    assert missing[0] in message
    assert "1 left over (stray.weight)" in message
    assert "roi_heads.box_head.fc6.bias (5,), not (32,)" in message


def test_a_missing_file_is_named(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"has no model\.safetensors"):
        load_detector(folder)


def test_a_file_instead_of_a_folder(folder):
    with pytest.raises(InputError, match="is a file; expected the folder"):
        load_detector(folder / "config.json")


def test_a_revision_needs_the_hub(folder):
    with pytest.raises(InputError, match="revision 'main' was given"):
        load_detector(folder, revision="main")


@pytest.mark.parametrize("name", ["nothing-here", "a/b/c", "../x", "/no/such/folder", ""])
def test_neither_a_folder_nor_a_hub_name(name, monkeypatch):
    def unreachable(*arguments, **options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(InputError):
        load_detector(name)


def test_hub_names_are_downloaded(saved, monkeypatch):
    asked = []

    def download(name, *, revision, allow_patterns):
        asked.append((name, revision, allow_patterns))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_detector("someone/detector", revision="v1").categories[0]["name"] == "cat"
    assert asked == [("someone/detector", "v1", ["config.json", "model.safetensors"])]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (ConnectionError("no route\nto host"), "cannot be reached.*no route.*unset HF_HUB_OFFLINE"),
        (hub_errors.LocalEntryNotFoundError("nothing cached"), "cannot be reached.*nothing cached"),
        (hub_errors.HFValidationError("bad name"), "bad name"),
    ],
)
def test_hub_errors_say_what_to_do(monkeypatch, error, says):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(InputError, match=says) as caught:
        load_detector("someone/detector")
    assert "'someone/detector'" in str(caught.value)
    assert "\n" not in str(caught.value)
