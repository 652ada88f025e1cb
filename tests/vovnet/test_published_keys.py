"""Load the published ImageNet files: every key is mapped, and the network computes the publishers' numbers."""

import functools
import hashlib
import io
import json
import runpy
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from file_server import serving
from published_sources import publish
from pytorchcv.models.vovnet import vovnet27s, vovnet39, vovnet57
from torch import Tensor
from zips import zipped

from vovnet.checkpoints.sources import source_named
from vovnet.errors import InputError
from vovnet.vovnet import checkpoint_filter_fn, published_keys, pytorchcv_keys

NAMES = ("vovnet27_slim", "vovnet39", "vovnet57")
SLIM = "vovnet27_slim"
PYTORCHCV = {SLIM: vovnet27s, "vovnet39": vovnet39, "vovnet57": vovnet57}


@pytest.fixture(scope="module")
def make(shared: Path) -> Callable[[str, tuple[int, ...]], np.ndarray]:
    """Return the array for a published key and a shape; the reference data were made by the same rule."""
    rule = runpy.run_path(str(shared / "reference" / "rule.py"))["make"]
    return functools.lru_cache(maxsize=None)(rule)


def golden(shared: Path, name: str) -> list[tuple[str, tuple[int, ...], str, int]]:
    rows = json.loads((shared / "reference" / "golden" / f"keys_cls_{name}.json").read_text())["state_dict"]
    return [(key, tuple(shape), dtype, crc) for key, shape, dtype, crc in rows]


def published(shared: Path, make: Callable[..., np.ndarray], name: str) -> dict[str, Tensor]:
    return {key: torch.from_numpy(make(key, shape)) for key, shape, _, _ in golden(shared, name)}


def random_published(**kwargs: Any) -> dict[str, Tensor]:
    """Return a state dict with published keys, made from one of our networks; it needs no reference data."""
    torch.manual_seed(3)
    model = timm.create_model(SLIM, **kwargs)
    state = model.state_dict()
    return {theirs: state[ours].clone() for theirs, ours in published_keys(model).items()}


@pytest.mark.parametrize("name", NAMES)
def test_every_golden_key_maps_onto_one_of_ours_with_its_shape(shared: Path, name: str) -> None:
    model = timm.create_model(name, device="meta")
    names, ours = published_keys(model), model.state_dict()
    rows = golden(shared, name)
    assert {key for key, *_ in rows} == set(names)
    assert set(names.values()) == set(ours)
    assert {names[key]: shape for key, shape, *_ in rows} == {key: tuple(value.shape) for key, value in ours.items()}


@pytest.mark.parametrize("name", [SLIM, "vovnet39"])
def test_a_rule_made_file_lands_where_it_should(shared: Path, make: Callable[..., np.ndarray], name: str) -> None:
    model = timm.create_model(name)
    model.load_state_dict(checkpoint_filter_fn(published(shared, make, name), model), strict=True)
    state, names = model.state_dict(), published_keys(model)
    for key, _, dtype, crc in golden(shared, name):
        array = state[names[key]].numpy()
        assert str(array.dtype) == dtype
        assert zlib.crc32(np.ascontiguousarray(array).tobytes()) == crc, key


def test_activations_equal_the_references(shared: Path, make: Callable[..., np.ndarray], tmp_path: Path) -> None:
    """Compare stages and logits with those of VoVNet.pytorch on one batch (shared/reference/README.md)."""
    file = tmp_path / "vovnet39_torchvision.pth"
    torch.save(published(shared, make, "vovnet39"), file)
    model = timm.create_model("vovnet39", pretrained=True, pretrained_cfg_overlay={"file": str(file)}).eval()
    x = torch.from_numpy((60 * np.random.default_rng(7).standard_normal((2, 3, 224, 224))).astype(np.float32))
    reference = np.load(shared / "reference" / "golden" / "cls_vovnet39.npz")
    with torch.inference_mode():
        x = model.stem(x)
        compare("stem", x, reference)
        for i, stage in enumerate(model.stages):
            x = stage(x)
            compare(f"stage{i + 2}", x, reference)
        logits = model.forward_head(x)
    torch.testing.assert_close(logits, torch.from_numpy(reference["logits"]), rtol=1e-4, atol=1e-4)


def compare(name: str, value: Tensor, reference: Any) -> None:
    assert tuple(value.shape) == tuple(reference[f"{name}.shape"])
    flat = value.flatten()
    sample = flat[np.linspace(0, flat.numel() - 1, min(1024, flat.numel())).astype(int)]
    scale = float(flat.abs().max())
    for got, wanted in ((sample, reference[f"{name}.sample"]), (flat[:16], reference[f"{name}.first16"])):
        torch.testing.assert_close(got, torch.from_numpy(wanted), rtol=1e-4, atol=1e-5 * scale)
    mean_std = torch.stack([flat.double().mean(), flat.double().std(correction=0)])
    torch.testing.assert_close(mean_std, torch.from_numpy(reference[f"{name}.mean_std"]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_wrappers_and_prefixes_come_off(wrap: str | None, prefix: str) -> None:
    plain = random_published()
    file: Any = {prefix + key: value for key, value in plain.items()}
    model = timm.create_model(SLIM)
    mapped = checkpoint_filter_fn({wrap: file, "epoch": 90} if wrap else file, model)
    names = published_keys(model)
    assert set(mapped) == set(names.values())
    assert all(mapped[names[key]] is value for key, value in plain.items())


def test_a_missing_key_and_a_left_over_key_are_listed() -> None:
    model, file = timm.create_model(SLIM, device="meta"), random_published()
    del file["stage3.OSA3_1.layers.0.OSA3_1_0/norm.num_batches_tracked"]
    del file["classifier.bias"]
    file["stage6.OSA6_1.concat.OSA6_1_concat/conv.weight"] = torch.zeros(1)
    file["extra"] = torch.zeros(1)
    with pytest.raises(InputError) as error:
        checkpoint_filter_fn(file, model)
    message = str(error.value)
    assert "missing: stage3.OSA3_1.layers.0.OSA3_1_0/norm.num_batches_tracked, classifier.bias;" in message
    assert "left over: stage6.OSA6_1.concat.OSA6_1_concat/conv.weight, extra)" in message
    assert "\n" not in message


def test_other_shapes_are_listed() -> None:
    model, file = timm.create_model(SLIM, device="meta"), random_published()
    file["stem.stem_2/conv.weight"] = torch.zeros(64, 64, 1, 1)
    file["classifier.weight"] = torch.zeros(1000, 1024)
    with pytest.raises(InputError) as error:
        checkpoint_filter_fn(file, model)
    assert "stem.stem_2/conv.weight is (64, 64, 1, 1) and should be (64, 64, 3, 3)" in str(error.value)
    assert "classifier.weight is (1000, 1024) and should be (1000, 512)" in str(error.value)


@pytest.mark.parametrize(("file", "into"), [("vovnet39", "vovnet57"), ("vovnet57", "vovnet39"), ("vovnet39", SLIM)])
def test_another_variants_file_is_refused(file: str, into: str) -> None:
    source = timm.create_model(file, device="meta")
    state = source.state_dict()
    with pytest.raises(InputError, match="does not fit this model"):
        checkpoint_filter_fn(
            {theirs: state[ours] for theirs, ours in published_keys(source).items()},
            timm.create_model(into, device="meta"),
        )


def test_our_own_and_timms_keys_pass_through() -> None:
    model = timm.create_model(SLIM)
    state = model.state_dict()
    assert checkpoint_filter_fn(state, model) == dict(state)
    headless = {key: value for key, value in state.items() if not key.startswith("head.")}
    assert checkpoint_filter_fn({"state_dict": headless}, model) == headless


@pytest.mark.parametrize("own_names", [False, True])
@pytest.mark.parametrize(
    "kwargs",
    [{}, {"num_classes": 10}, {"num_classes": 0}, {"in_chans": 1}, {"features_only": True, "out_indices": (1, 4)}],
    ids=str,
)
def test_pretrained_through_timm(kwargs: dict[str, Any], own_names: bool, tmp_path: Path) -> None:
    file, reference = random_published(), timm.create_model(SLIM)
    mapped = checkpoint_filter_fn(file, reference)
    path = tmp_path / "weights.pth"
    torch.save(mapped if own_names else file, path)
    model = timm.create_model(SLIM, pretrained=True, pretrained_cfg_overlay={"file": str(path)}, **kwargs)
    state = model.state_dict()
    if "features_only" in kwargs:
        mapped = {k.replace("stem.", "stem_").replace("stages.", "stages_"): v for k, v in mapped.items()}
    expected = {key: value for key, value in mapped.items() if not key.startswith("head.")}
    if "in_chans" in kwargs:
        expected["stem.0.conv.weight"] = expected["stem.0.conv.weight"].sum(dim=1, keepdim=True)
    if not kwargs:
        expected = mapped
    for key, value in expected.items():
        assert torch.equal(state[key], value), key
    head = (
        {} if {"features_only"} & set(kwargs) or kwargs.get("num_classes") == 0 else {"head.fc.weight", "head.fc.bias"}
    )
    assert set(state) == set(expected) | set(head)


def test_a_bad_file_names_the_keys_through_timm(tmp_path: Path) -> None:
    file = random_published()
    del file["stem.stem_1/conv.weight"]
    torch.save(file, tmp_path / "weights.pth")
    with pytest.raises(InputError, match="missing: stem"):
        timm.create_model(SLIM, pretrained=True, pretrained_cfg_overlay={"file": str(tmp_path / "weights.pth")})


@pytest.mark.parametrize("name", NAMES)
def test_pytorchcvs_keys_are_those_of_its_networks(name: str) -> None:
    model = timm.create_model(name, device="meta")
    with torch.device("meta"):
        theirs = PYTORCHCV[name]().state_dict()
    names, ours = pytorchcv_keys(model), model.state_dict()
    assert list(names) == list(theirs)  # one order, too
    assert list(names.values()) == list(ours)
    assert all(theirs[key].shape == ours[names[key]].shape for key in names)


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("publisher", [published_keys, pytorchcv_keys])
def test_a_file_may_be_older_than_the_counters(
    publisher: Callable[[torch.nn.Module], dict[str, str]], counted: bool
) -> None:
    model = timm.create_model(SLIM)
    state, names = model.state_dict(), publisher(model)
    counters = [key for key in names if key.endswith("num_batches_tracked")]
    file = {theirs: state[ours].clone() for theirs, ours in names.items() if counted or theirs not in counters}
    model.load_state_dict(checkpoint_filter_fn(file, model), strict=True)
    if counted:
        del file[counters[0]]
        with pytest.raises(InputError, match="missing"):
            checkpoint_filter_fn(file, model)


@pytest.mark.parametrize(("file", "into"), [("vovnet39", "vovnet57"), ("vovnet57", "vovnet39"), ("vovnet39", SLIM)])
def test_another_variants_file_of_pytorchcv_is_refused(file: str, into: str) -> None:
    source = timm.create_model(file, device="meta")
    state = source.state_dict()
    with pytest.raises(InputError, match="does not fit this model"):
        checkpoint_filter_fn(
            {theirs: state[ours] for theirs, ours in pytorchcv_keys(source).items()},
            timm.create_model(into, device="meta"),
        )


@pytest.mark.parametrize("name", NAMES)
def test_weights_of_pytorchcv_compute_its_logits(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Save its own network, zip and serve the file, load it with ``pretrained=True``, and compare the outputs."""
    theirs = randomised(PYTORCHCV[name]().eval())
    file = io.BytesIO()
    torch.save(theirs.state_dict(), file)
    source = source_named(f"{name}.osmr_in1k")
    assert source is not None
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    image = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    with serving() as server, torch.inference_mode():
        url = server.put(f"{source.file}.zip", zipped([(source.file, file.getvalue())], zipfile.ZIP_STORED))
        publish(monkeypatch, source.name, url, hashlib.sha1(file.getvalue()).hexdigest())
        ours, expected = timm.create_model(name, pretrained=True).eval()(image), theirs(image)
    assert float(expected.std()) > 0.01
    assert float((ours - expected).abs().max() / expected.abs().max()) < 1e-6


def randomised(model: torch.nn.Module) -> torch.nn.Module:
    """Give every batch norm statistics, weights and biases of its own, as training does."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for value, low, high in (
                (module.weight.data, 0.5, 1.5),
                (module.bias.data, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 1.5),
            ):
                assert value is not None
                value.uniform_(low, high, generator=generator)
    return model
