"""Detector folders: what is written comes back, and nothing wrong gets in."""

import ctypes
import dataclasses
import errno
import json
import os
import pickle
import random
import shutil
import stat
import struct
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import safetensors
import safetensors.torch
import torch
from constructions import constructions
from hostile import Memory
from local_hub import ALWAYS
from safetensors.torch import load_file, save_file
from support import contents
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN

from vovnet.detection.checkpoints import folder as folder_module
from vovnet.detection.checkpoints.empty import empty_detector, fill_detector
from vovnet.detection.checkpoints.folder import load_detector, save_detector
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.models.build import build_detector
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

SMALL_SWIN = {"embed_dim": 24, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1], "strict_img_size": False}
"""A network that computes tensors which are in no state dict."""


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
    with pytest.raises(InputError, match="num_classes = 2, got 1"):
        save_detector(tmp_path, detector, MODEL, CATEGORIES[:1])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda c: c.update(format="other"), "'format' is 'other'"),
        (lambda c: c.update(format_version=2), "'format_version' is 2, this vovnet reads 1"),
        (lambda c: c.update(format_version=True), "'format_version' is true"),
        (lambda c: c.update(extra=1), "unknown key 'extra'"),
        (lambda c: c.pop("preprocessing"), "missing key 'preprocessing'"),
        (lambda c: c.update(model=[1]), "model: expected keys"),
        (lambda c: c["model"].update(backbonee="x"), "unknown key 'model.backbonee'; did you mean 'backbone'"),
        (lambda c: c["model"].update(fpn_channels="many"), "fpn_channels"),
        (lambda c: c["model"].update(backbone="${oc.env:HOME}"), "not allowed"),
        (lambda c: c["model"].update(num_classes=10**9), "model.num_classes: expected at most 20000"),
        (lambda c: c["model"].update(rpn_head_convs=10**6), "rpn_head_convs"),
        (lambda c: c["model"].update(box_score_thresh=float("nan")), "box_score_thresh"),
        (lambda c: c["model"].update(backbone="hf-hub:someone/something"), "plain name"),
        (lambda c: c["model"].update(backbone_args={"checkpoint_path": "evil.pth"}), "checkpoint_path is not allowed"),
        (lambda c: c["model"].update(backbone_args={"layers": [10**12]}), "model.backbone_args"),
        (lambda c: c["model"].update(anchor_sizes=[[32]] * 1000), "at most 64"),
        (lambda c: c["model"].update(image_mean=[0.5]), "model.image_mean"),
        (lambda c: c["model"].update(min_size=65), "preprocessing.min_size: expected 65 as in the model part, got 64"),
        (lambda c: c["preprocessing"].update(channel_order="bgr"), "preprocessing.channel_order"),
        (lambda c: c["categories"].pop(), "categories: expected model.num_classes = 2, got 1"),
        (lambda c: c["categories"][0].update(id=2), "categories"),
        (lambda c: c["categories"][0].update(id="4"), "categories.*id"),
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
    channels = []
    build = folder_module.__dict__["empty_detector"]

    def watch(model):
        detector = build(model)
        assert all(parameter.is_meta for parameter in detector.parameters())
        channels.append(model.fpn_channels)
        return detector

    monkeypatch.setattr(folder_module, "empty_detector", watch)
    with pytest.raises(InputError, match="weights of another model"):
        load_detector(folder)
    assert channels == [4096]


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


@pytest.mark.parametrize("name", ["vovnet39", "vovnet39.in1k", "resnet50"])
def test_a_classifiers_name_is_no_detector(name, hub):
    with pytest.raises(InputError, match=rf"'{name}' is a classifier's name.*model\.backbone"):
        load_detector(name)
    assert hub.log() == []


@pytest.mark.parametrize("name", ["nothing-here", "a/b/c", "../x", "/no/such/folder", ""])
def test_neither_a_folder_nor_a_hub_name(name, hub):
    with pytest.raises(InputError):
        load_detector(name)
    assert hub.log() == []


# From the Hub; tests/vovnet/checkpoints/test_hub.py has the rest of what can go wrong on the way.


def equal(loaded, detector):
    """Parameters and buffers, also those that are not saved, such as the anchors."""
    for kind in ("named_parameters", "named_buffers"):
        got, expected = dict(getattr(loaded, kind)()), dict(getattr(detector, kind)())
        assert got.keys() == expected.keys()
        for key, value in expected.items():
            assert got[key].device == value.device
            assert got[key].requires_grad == value.requires_grad
            assert torch.equal(got[key], value), key
    return True


def test_hub_names_and_revisions(saved, detector, hub, tmp_path):
    first = hub.create("someone/detector", {**contents(saved), "last.pt": b"a pickle"})
    hub.tag("someone/detector", "v1")
    changed = {"config.json": (saved / "config.json").read_bytes().replace(b'"cat"', b'"lynx"')}
    second = hub.commit("someone/detector", changed)
    for name, revision, category in (
        ("someone/detector", None, "lynx"),
        ("someone/detector", "main", "lynx"),
        ("someone/detector", second, "lynx"),
        ("someone/detector", "v1", "cat"),
        ("someone/detector", first, "cat"),
        ("someone/detector@v1", None, "cat"),
        (f"someone/detector@{first}", None, "cat"),
    ):
        loaded = load_detector(name, revision=revision)
        assert loaded.categories[0]["name"] == category
        assert equal(loaded, detector)
    asked = {Path(request.path).name for request in hub.log()}
    assert asked == {"config.json", "model.safetensors"}


def test_both_files_are_of_one_commit(saved, detector, hub, monkeypatch):
    hub.create("someone/detector", contents(saved))
    download = huggingface_hub.hf_hub_download

    def and_someone_pushes(repository, filename, **options):
        path = download(repository, filename, **options)
        hub.commit("someone/detector", {"config.json": b"of another", "model.safetensors": b"detector"})
        return path

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", and_someone_pushes)
    assert equal(load_detector("someone/detector"), detector)


def test_a_warm_cache_needs_no_hub(saved, detector, hub, offline):
    hub.create("someone/detector", contents(saved))
    load_detector("someone/detector")
    hub.down()
    assert equal(load_detector("someone/detector"), detector)
    offline()
    assert equal(load_detector("someone/detector"), detector)


def private(hub, files):
    hub.create("someone/detector", files, private=True)


def gated(hub, files):
    hub.create("someone/detector", files, gated=True)


def without_weights(hub, files):
    hub.create("someone/detector", {"config.json": files["config.json"]})


def of_another_kind(hub, files):
    hub.create("someone/detector", {**files, "config.json": b'{"architecture": "vovnet39"}'})


def down(hub, files):
    hub.create("someone/detector", files)
    hub.down()


def failing(hub, files):
    hub.create("someone/detector", files)
    hub.fail("safetensors", times=ALWAYS, status=503)


def cut_off(hub, files):
    hub.create("someone/detector", files)
    hub.cut("safetensors", times=ALWAYS)


WAYS_OUT = ("HF_ENDPOINT", "folder", "cache folder models--someone--detector")


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (lambda hub, files: None, ("someone/detector", "no such repository", "hf auth login")),
        (private, ("someone/detector", "private", "hf auth login")),
        (gated, ("someone/detector", "gated", "terms")),
        (without_weights, ("someone/detector", "has no model.safetensors")),
        (of_another_kind, ("config.json", "'format'")),
        (down, ("someone/detector", "config.json", *WAYS_OUT)),
        (failing, ("someone/detector", "model.safetensors", "503", *WAYS_OUT)),
        (cut_off, ("someone/detector", "model.safetensors", *WAYS_OUT)),
    ],
)
def test_hub_errors_say_what_to_do(saved, hub, prepare, words):
    prepare(hub, contents(saved))
    with pytest.raises(InputError) as caught:
        load_detector("someone/detector")
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message


def test_an_unknown_revision_is_named(saved, hub):
    hub.create("someone/detector", contents(saved))
    with pytest.raises(InputError, match=r"'someone/detector' has no revision 'v9'"):
        load_detector("someone/detector", revision="v9")


def test_a_private_repository_with_a_token(saved, detector, hub, token):
    private(hub, contents(saved))
    assert equal(load_detector("someone/detector"), detector)


def test_a_flipped_bit_on_the_way_is_found(saved, detector, hub, tmp_path):
    hub.create("someone/detector", contents(saved))
    hub.flip("safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors.*checksum.*again"):
        load_detector("someone/detector")
    # What "again" takes: the client keeps what it has.
    shutil.rmtree(tmp_path / "hub-cache" / "models--someone--detector")
    assert equal(load_detector("someone/detector"), detector)


# What loading costs.


class Opened:
    """Counts what a safetensors file is opened and read with."""

    def __init__(self, monkeypatch):
        self.files, self.tensors, self.python = [], [], []
        self.watching = False
        real = safetensors.safe_open
        counter = self

        class Counted:
            def __init__(self, filename, *arguments, **options):
                counter.files.append(str(filename))
                self._file = real(filename, *arguments, **options)

            def __enter__(self):
                self._file.__enter__()
                return self

            def __exit__(self, *error):
                return self._file.__exit__(*error)

            def __getattr__(self, name):
                return getattr(self._file, name)

            def get_tensor(self, key):
                counter.tensors.append(key)
                return self._file.get_tensor(key)

        def audit(event, arguments):
            # Hooks cannot be taken off again; this one sleeps when its test is done.
            if self.watching and event == "open" and str(arguments[0]).endswith("model.safetensors"):
                self.python.append(arguments[0])

        monkeypatch.setattr(safetensors, "safe_open", Counted)
        for name in ("load", "load_file"):
            monkeypatch.setattr(safetensors.torch, name, None)
        sys.addaudithook(audit)

    @contextmanager
    def counting(self):
        self.watching = True
        try:
            yield
        finally:
            self.watching = False


def openings_of(path, call):
    """Return what the system did with a file during a call, from anywhere in the process: open it or close it.

    inotify tells; equal events in a row count once, so this is how often the file is opened and closed again.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    assert descriptor >= 0
    try:
        closed, opened = 0x10, 0x20
        assert libc.inotify_add_watch(descriptor, os.fsencode(path), closed | opened) >= 0
        call()
        events, masks = b"", []
        with suppress(BlockingIOError):
            while True:
                events += os.read(descriptor, 4096)
        while events:
            _, mask, _, length = struct.unpack_from("iIII", events)
            masks.append(mask)
            events = events[16 + length :]
        return masks
    finally:
        os.close(descriptor)


def test_the_weights_are_read_once(saved, detector, monkeypatch):
    """One ``safe_open`` for header and tensors, each tensor once, and no other read of the file."""
    opened = Opened(monkeypatch)
    with opened.counting():
        load_detector(saved)
    assert opened.files == [str(saved / "model.safetensors")]
    assert sorted(opened.tensors) == sorted(detector.state_dict())
    assert opened.python == []


def test_a_download_is_read_once(saved, detector, hub, monkeypatch):
    hub.create("someone/detector", contents(saved))
    load_detector("someone/detector")
    opened = Opened(monkeypatch)
    with opened.counting():
        load_detector("someone/detector")
    assert len(opened.files) == 1
    assert len(opened.tensors) == len(detector.state_dict())
    assert opened.python == []


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux's")
def test_the_system_opens_the_file_as_for_one_reading_by_hand(saved, detector):
    path = saved / "model.safetensors"

    def by_hand():
        with safetensors.safe_open(path, framework="pt") as file:
            for key in detector.state_dict():
                file.get_tensor(key)

    once = openings_of(path, by_hand)
    assert once
    assert openings_of(path, lambda: (by_hand(), by_hand())) != once
    assert openings_of(path, lambda: load_detector(saved)) == once


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"detector": "faster_rcnn", "norm": "frozen_bn", "trainable_stages": 2, "pretrained": True},
        {"backbone": "resnet18", "norm": "gn", "fpn_norm": "gn", "head_norm": "gn", "box_head_convs": 2},
        {"conventions": "legacy", "backbone_args": {"drop_path_rate": 0.1}},
        {"detector": "faster_rcnn", "extra_level": "p6p7"},
        {"backbone": "ese_vovnet19b_slim", "pretrained": True, "norm": "bn"},
        {"detector": "faster_rcnn", "backbone": "swin_tiny_patch4_window7_224", "backbone_args": SMALL_SWIN},
    ],
)
def test_nothing_is_left_uninitialised(tmp_path, change):
    """The result is that of building and loading by hand, with whatever memory held before."""
    model = dataclasses.replace(MODEL, **change)
    torch.manual_seed(5)
    made = build_detector(model, download=False).eval()
    save_detector(tmp_path, made, model, CATEGORIES)
    by_hand = build_detector(model, download=False).eval()
    by_hand.load_state_dict(load_file(tmp_path / "model.safetensors"))
    fill = torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)  # memory that nobody has written to is then NaN
    torch.utils.deterministic.fill_uninitialized_memory = True
    try:
        loaded = load_detector(tmp_path)
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = fill
    assert equal(loaded, by_hand)
    assert equal(loaded, made)
    assert not loaded.training


def test_the_detector_is_built_once(saved, monkeypatch):
    with constructions(monkeypatch, GeneralizedRCNN) as made:
        load_detector(saved)
    assert made == {"GeneralizedRCNN": 1}


def test_computed_tables_beyond_any_image_are_refused():
    """The index of a window of 300×300 pixels has 90,000² numbers, and no file has to hold it."""
    arguments = {**SMALL_SWIN, "window_size": 300, "img_size": 99_999}
    model = dataclasses.replace(MODEL, backbone="swin_tiny_patch4_window7_224", backbone_args=arguments)
    with Memory() as memory:
        empty = empty_detector(model)
        with pytest.raises(InputError, match="numbers"):
            fill_detector(empty, model, {})
    assert memory.largest < 10**6


def test_changing_the_file_afterwards_does_not_change_the_detector(folder, detector):
    loaded = load_detector(folder)
    path = folder / "model.safetensors"
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    assert equal(loaded, detector)


@pytest.mark.parametrize("change", [{}, {"backbone": "swin_tiny_patch4_window7_224", "backbone_args": SMALL_SWIN}])
def test_randomness_is_left_alone(tmp_path, change):
    """Whoever seeded goes on as if nothing had been loaded."""
    model = dataclasses.replace(MODEL, **change)
    save_detector(tmp_path, build_detector(model), model, CATEGORIES)
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    load_detector(tmp_path)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert str(np.random.get_state()) == str(before[2])


def test_a_detector_is_loaded_after_a_failure_as_before(folder, detector):
    """Loading restores what it changes, also if it fails."""
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(flip_a_bit(whole))
    with pytest.raises(InputError):
        load_detector(folder)
    torch.manual_seed(0)
    assert equal(build_detector(MODEL).eval(), detector)
    (folder / "model.safetensors").write_bytes(whole)
    assert equal(load_detector(folder), detector)
