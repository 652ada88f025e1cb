"""Files that strangers wrote: whatever their JSON, headers and sums say, they load or are refused in one line."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hostile import Memory
from hub_folders import sum_anew
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st
from strange_json import mutated, mutated_text, nested, strange_values
from support import contents
from timm.models import save_for_hf

from vovnet.checkpoints.pickled import read_checkpoint_file
from vovnet.checkpoints.timm_folder import load_timm_folder
from vovnet.detection import build_detector
from vovnet.detection.checkpoints.folder import save_detector
from vovnet.detection.config.model import ModelRecipe
from vovnet.errors import InputError
from vovnet.hub import convert_checkpoint, load_detector, verify
from vovnet.hub.manifest import check_sums, read_manifest
from vovnet.hub.reference_outputs import _difference
from vovnet.vovnet import published_keys

SIZES: dict[str, Any] = {
    "stem_chs": [4, 4, 4],
    "stage_conv_chs": [4, 4, 4, 4],
    "stage_out_chs": [4, 4, 4, 4],
    "layer_per_block": 1,
    "block_per_stage": [1, 1, 1, 1],
}
MODEL = ModelRecipe(
    backbone="vovnet27_slim",
    backbone_args=SIZES,
    fpn_channels=4,
    box_representation_size=8,
    num_classes=2,
    min_size=64,
    max_size=96,
)
CATEGORIES = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
LARGEST = 2_000_000
"""Numbers in the largest tensor that reading a hostile file may make; the files hold some thousands."""

some = settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck), database=None)


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("timm")
    torch.manual_seed(0)
    model = timm.create_model("vovnet27_slim", num_classes=3, **SIZES)
    save_for_hf(model, str(folder), model_config={"num_classes": 3}, model_args=dict(SIZES), safe_serialization=True)
    return folder


@pytest.fixture(scope="module")
def detector_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("detector")
    torch.manual_seed(0)
    save_detector(folder, build_detector(MODEL), MODEL, CATEGORIES)
    return folder


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `vovnet convert` wrote, with manifest and sums; a small checkpoint lies beside it."""
    folder = tmp_path_factory.mktemp("converted")
    torch.manual_seed(0)
    model = timm.create_model("vovnet27_slim", num_classes=3)
    state = model.state_dict()
    torch.save({theirs: state[ours] for theirs, ours in published_keys(model).items()}, folder / "file.pth")
    torch.save(STATES, folder / "small.pth")
    convert_checkpoint(folder / "file.pth", folder / "out")
    return folder / "out"


def holds(folder: Path, name: str, data: bytes | str, use: Callable[[Path], object], longest: int = 3000) -> None:
    """Use a folder of which one file was replaced: it works, or one line says what is wrong; nothing else happens."""
    path = folder / name
    before = path.read_bytes()
    path.write_bytes(data if isinstance(data, bytes) else data.encode("utf-8", "surrogatepass"))
    files = contents(folder)
    try:
        with Memory() as memory:
            use(folder)
    except InputError as error:
        message = str(error)
        assert "\n" not in message
        assert len(message) < longest
        message.encode("utf-8")  # a terminal or a log can show it
    finally:
        after = contents(folder)
        path.write_bytes(before)
    assert {**after, "SHA256SUMS": b""} == {**files, "SHA256SUMS": b""}
    assert memory.largest < LARGEST


@given(data=st.data())
@some
def test_timms_config(timm_folder: Path, data: st.DataObject) -> None:
    config = json.loads((timm_folder / "config.json").read_text())
    holds(timm_folder, "config.json", data.draw(mutated_text(config)), load_timm_folder)


@given(data=st.data())
@some
def test_arguments_of_a_timm_model(timm_folder: Path, data: st.DataObject) -> None:
    config = json.loads((timm_folder / "config.json").read_text())
    config["model_args"] = data.draw(mutated(config["model_args"]))
    holds(timm_folder, "config.json", json.dumps(config), load_timm_folder)


@given(data=st.data())
@some
def test_a_detectors_config(detector_folder: Path, data: st.DataObject) -> None:
    config = json.loads((detector_folder / "config.json").read_text())
    holds(detector_folder, "config.json", data.draw(mutated_text(config)), load_detector)


@given(data=st.data())
@some
def test_the_model_part_of_a_detectors_config(detector_folder: Path, data: st.DataObject) -> None:
    config = json.loads((detector_folder / "config.json").read_text())
    key = data.draw(st.sampled_from(sorted(config["model"])))
    config["model"][key] = data.draw(st.one_of(strange_values(), mutated(config["model"][key])))
    holds(detector_folder, "config.json", json.dumps(config), load_detector)


# Weights.


def with_header(data: bytes, header: str) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    text = header.encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """A safetensors file with another header, a flipped bit in header or length, another length, or cut off."""
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    # A few entries, so that changes hit types, shapes and offsets of tensors and not only names.
    key = sorted(header)[0]
    return st.one_of(
        mutated(header).map(lambda values: with_header(data, json.dumps(values))),
        mutated(header[key]).map(lambda values: with_header(data, json.dumps({**header, key: values}))),
        mutated_text(header).map(lambda text: with_header(data, text)),
        st.tuples(st.integers(0, 8 + length - 1), st.integers(0, 7)).map(
            lambda hit: data[: hit[0]] + bytes([data[hit[0]] ^ 1 << hit[1]]) + data[hit[0] + 1 :]
        ),
        st.integers(0, 2**64 - 1).map(lambda claimed: struct.pack("<Q", claimed) + data[8:]),
        st.integers(0, len(data) - 1).map(lambda end: data[:end]),
    )


@given(data=st.data())
@some
def test_weights_of_a_timm_model(timm_folder: Path, data: st.DataObject) -> None:
    whole = (timm_folder / "model.safetensors").read_bytes()
    holds(timm_folder, "model.safetensors", data.draw(damaged(whole)), load_timm_folder)


@given(data=st.data())
@some
def test_weights_of_a_detector(detector_folder: Path, data: st.DataObject) -> None:
    whole = (detector_folder / "model.safetensors").read_bytes()
    holds(detector_folder, "model.safetensors", data.draw(damaged(whole)), load_detector)


# What is published beside the weights.


def check(folder: Path) -> None:
    """Read everything that `vovnet verify` reads before it runs the network, and compare with an empty record."""
    check_sums(folder, ("config.json", "model.safetensors"))
    manifest = read_manifest(folder)
    for name, recorded in manifest.outputs.items():
        _difference({"shape": [1], "largest": 1.0, "values": [1.0]}, recorded)
        str(name)


@given(data=st.data())
@some
def test_manifests(converted: Path, data: st.DataObject) -> None:
    manifest = json.loads((converted / "manifest.json").read_text())
    holds(converted, "manifest.json", data.draw(mutated_text(manifest)), check)


@given(data=st.data())
@settings(some, max_examples=5)
def test_outputs_in_a_manifest(converted: Path, data: st.DataObject) -> None:
    """The sums fit, as whoever changes a manifest on purpose would see to."""
    sums = (converted / "SHA256SUMS").read_bytes()
    manifest = json.loads((converted / "manifest.json").read_text())
    manifest["outputs"] = data.draw(mutated(manifest["outputs"]))

    def use(folder: Path) -> None:
        sum_anew(folder)
        verify(folder)

    try:
        holds(converted, "manifest.json", json.dumps(manifest), use)
    finally:
        (converted / "SHA256SUMS").write_bytes(sums)


@given(data=st.data())
@some
def test_sums(converted: Path, data: st.DataObject) -> None:
    whole = (converted / "SHA256SUMS").read_bytes()
    place, end = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, len(whole)))
    replaced = data.draw(
        st.one_of(
            st.binary(max_size=200),
            st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")),
            st.just(whole[:end]),
            st.just(whole + whole[:end]),
            st.binary(max_size=3).map(lambda more: whole[:place] + more + whole[place + 1 :]),
            st.just(whole.replace(b"README.md", b"../README.md")),
            st.just(b"0" * 2**17),
        )
    )
    holds(converted, "SHA256SUMS", replaced, check)


# Published files.

STATES: dict[str, Any] = {
    "model": {
        "module.stem.stem_1/conv.weight": torch.zeros(2, 3, 3, 3),
        "module.stem.stem_1/norm.num_batches_tracked": torch.tensor(3),
    },
    "optimizer": {"lr": [0.1]},
}
STRANGE_TENSORS: tuple[Any, ...] = (
    torch.zeros(0),
    torch.tensor(float("nan")),
    torch.zeros(3, dtype=torch.complex64),
    torch.zeros(3, dtype=torch.bool),
    torch.zeros(3, dtype=torch.uint8),
    torch.zeros(1).expand(2**20),
    torch.zeros(2, 2).to_sparse(),
    torch.zeros(2, device="meta"),
    torch.nn.Parameter(torch.zeros(2)),
    torch.zeros(3).conj(),
    torch.zeros(3)._neg_view(),
)


@given(data=st.data())
@some
def test_published_files(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("pth")
    state = dict(STATES)
    strange = st.one_of(st.sampled_from(STRANGE_TENSORS), strange_values())
    part = data.draw(st.sampled_from(("all", "model", "key", "tensor")))
    if part == "all":
        state = data.draw(strange)
    elif part == "model":
        state["model"] = data.draw(strange)
    elif part == "key":
        state["model"] = {data.draw(st.one_of(st.text(max_size=9), st.integers(), st.none())): torch.zeros(1)}
    else:
        key = data.draw(st.sampled_from(sorted(state["model"])))
        state["model"] = {**state["model"], key: data.draw(strange)}
    try:
        torch.save(state, folder / "file.pth")
    except RecursionError:  # nested more deeply than Python 3.12 and later let torch write
        reject()
    whole = (folder / "file.pth").read_bytes()
    # A message may list all keys of a network that are missing.
    holds(folder, "file.pth", whole, lambda _: convert_checkpoint(folder / "file.pth", folder / "out"), longest=50_000)


@given(data=st.data())
@some
def test_damaged_published_files(converted: Path, data: st.DataObject) -> None:
    whole = (converted.parent / "small.pth").read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    cut = data.draw(st.sampled_from((whole[:place], whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1 :])))
    holds(converted.parent, "small.pth", cut, lambda folder: read_checkpoint_file(folder / "small.pth"))


@pytest.mark.parametrize("text", ["5", "[" * 100_000, json.dumps({"model_args": nested(), "architecture": "vovnet39"})])
def test_deep_nesting_at_pythons_usual_depth(
    timm_folder: Path, detector_folder: Path, converted: Path, text: str
) -> None:
    """hypothesis raises the limit of recursion; a user's process does not."""
    holds(timm_folder, "config.json", text, load_timm_folder)
    holds(detector_folder, "config.json", text, load_detector)
    holds(converted, "manifest.json", text, check)
