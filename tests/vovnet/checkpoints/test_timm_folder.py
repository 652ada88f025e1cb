"""Folders in timm's form from anyone: what loads is what was saved, and hostile ones are refused before they cost."""

import io
import json
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hostile import Memory, RunsCode
from local_hub import Hub
from safetensors.torch import load_file, save_file
from support import contents
from timm.models import save_for_hf
from torch import nn

import vovnet  # noqa: F401  (registers the models)
from vovnet.checkpoints.timm_folder import load_timm_folder
from vovnet.classification import load_classifier
from vovnet.errors import InputError

SIZES: dict[str, Any] = {"stem_chs": [8, 8, 8], "stage_conv_chs": [8, 8, 8, 8], "stage_out_chs": [8, 8, 8, 8]}
LARGEST = 500_000
"""Numbers, 2 MB: far more than a tensor of the network above has, far less than a hostile one's would."""


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    made = timm.create_model("vovnet27_slim", num_classes=3, **SIZES)
    for value in made.buffers():  # as after a training
        if value.is_floating_point():
            value.uniform_(0.5, 1.5)
    return made.eval()


@pytest.fixture
def folder(model: nn.Module, tmp_path: Path) -> Path:
    """A sound one, which a test may damage."""
    path = tmp_path / "folder"
    save_for_hf(model, str(path), model_config={"num_classes": 3}, model_args=dict(SIZES), safe_serialization=True)
    return path


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


def equal(loaded: nn.Module, model: nn.Module) -> bool:
    state, expected = loaded.state_dict(), model.state_dict()
    return state.keys() == expected.keys() and all(torch.equal(value, expected[key]) for key, value in state.items())


@contextmanager
def cheap() -> Iterator[None]:
    """Nothing larger than the file justifies is made meanwhile."""
    with Memory() as memory:
        yield
    assert memory.largest <= LARGEST


def refused(folder: Path | str, *words: str) -> str:
    with cheap(), pytest.raises(InputError) as caught:
        load_timm_folder(Path(folder))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 5000
    for word in words:
        assert word in message, message
    with pytest.raises(InputError):
        load_classifier(folder)
    return message


def test_what_loads_is_what_was_saved(model: nn.Module, folder: Path) -> None:
    with cheap():
        loaded = load_timm_folder(folder)
    assert not loaded.training
    assert equal(loaded, model)
    assert equal(load_classifier(f"local-dir:{folder}"), model)


def test_the_memory_is_watched() -> None:
    with Memory() as memory:
        timm.create_model("vovnet39")
    assert memory.largest > LARGEST


@pytest.mark.parametrize("architecture", ["vovnet39a", "resnet18"])
def test_other_architectures_of_timms(tmp_path: Path, architecture: str) -> None:
    torch.manual_seed(0)
    arguments = {"residual": True} if architecture == "vovnet39a" else {}
    other = timm.create_model(architecture, num_classes=2, **arguments)
    save_for_hf(other, str(tmp_path), model_config={"num_classes": 2}, model_args=arguments, safe_serialization=True)
    assert equal(load_timm_folder(tmp_path), other)


def test_an_older_export_without_arguments(tmp_path: Path) -> None:
    """timm before 1.0.20 or so wrote no ``num_classes`` and ``in_chans`` among the arguments."""
    torch.manual_seed(0)
    grey = timm.create_model("vovnet27_slim", num_classes=2, in_chans=1)
    save_for_hf(grey, str(tmp_path), model_config={"num_classes": 2}, safe_serialization=True)
    edit(tmp_path, lambda c: (c.pop("model_args"), c["pretrained_cfg"].update(input_size=[1, 224, 224])))
    assert equal(load_timm_folder(tmp_path), grey)


# Configurations.


def arguments(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["model_args"].update(values)


def cfg(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["pretrained_cfg"].update(values)


def bare(change: Callable[[dict[str, Any]], object]) -> Callable[[dict[str, Any]], object]:
    """Change a configuration as older versions of timm wrote it: the arguments do not repeat classes and channels."""

    def changed(config: dict[str, Any]) -> None:
        for key in ("num_classes", "in_chans"):
            config["model_args"].pop(key, None)
        change(config)

    return changed


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "no architecture": lambda c: c.pop("architecture"),
    "an architecture that is a list": lambda c: c.update(architecture=["vovnet39"]),
    "an unknown architecture": lambda c: c.update(architecture="vovnet93"),
    "a path as architecture": lambda c: c.update(architecture="../../etc/passwd"),
    "a repository as architecture": lambda c: c.update(architecture="hf-hub:org/evil"),
    "a folder as architecture": lambda c: c.update(architecture="local-dir:/tmp"),
    "code as architecture": lambda c: c.update(architecture="__import__('os').mkdir('ran')"),
    "arguments that are a list": lambda c: c.update(model_args=[1]),
    "arguments that are null": lambda c: c.update(model_args=None),
    "an unknown argument": arguments(evil=1),
    "huge channels": arguments(stem_chs=[10**6] * 3),
    "large channels": arguments(stem_chs=[5000] * 3),
    "channels beyond all numbers": arguments(stem_chs=[10**30] * 3),
    "channels that are text": arguments(stem_chs="888"),
    "channels that are no integers": arguments(stem_chs=[8.5, 8, 8]),
    "negative channels": arguments(stem_chs=[-8, 8, 8]),
    "channels that are null": arguments(stem_chs=[None, 8, 8]),
    "huge depth": arguments(block_per_stage=[100_000] * 4),
    "huge blocks": arguments(layer_per_block=100_000),
    "large depth": arguments(block_per_stage=[500, 1, 1, 1]),
    "huge classes": lambda c: (c.update(num_classes=10**9), c["model_args"].update(num_classes=10**9)),
    "large classes": lambda c: (c.update(num_classes=99_999), c["model_args"].update(num_classes=99_999)),
    "huge channels of the image": arguments(in_chans=10**9),
    "large channels of the image": arguments(in_chans=99_999),
    "huge channels of the image beside the arguments": bare(cfg(input_size=[10**9, 224, 224])),
    "large channels of the image beside the arguments": bare(cfg(input_size=[99_999, 224, 224])),
    "a huge image": cfg(input_size=[3, 10**9, 10**9]),
    "an image of no size": cfg(input_size=[3, 0, 0]),
    "a size that is text": cfg(input_size="abc"),
    "a size of two": cfg(input_size=[3, 224]),
    "a mean that is text": cfg(mean="abc"),
    "a mean that is NaN": cfg(mean=[float("nan")] * 3),
    "a std of 0": cfg(std=[0.0, 0.0, 0.0]),
    "a long list": arguments(stem_chs=[8] * 100_000),
    "NaN": arguments(drop_rate=float("nan")),
    "infinity": arguments(drop_rate=float("-inf")),
    "a file to read": arguments(checkpoint_path="/etc/passwd"),
    "pretrained": arguments(pretrained=True),
    "a configuration of its own": arguments(pretrained_cfg={"url": "http://127.0.0.1:1/x.pth"}),
    "an overlay": arguments(pretrained_cfg_overlay={"file": "/etc/passwd"}),
    "a cache": arguments(cache_dir="/tmp/elsewhere"),
    "another device": arguments(device="cpu", stem_chs=[2000, 2000, 8]),
    "a device that is absent": arguments(device="cuda:99"),
    "lenience": arguments(pretrained_strict=False),
    "a function": arguments(pretrained_filter_fn="os.system"),
    "features only": arguments(features_only=True),
    "pruned": arguments(pruned=True),
    "code as activation": arguments(act_layer="__import__('os').mkdir('ran')"),
    "a path as norm": arguments(norm_layer="os.mkdir"),
    "another configuration in the way": cfg(custom_load="hf", hf_hub_filename="x.bin", evil=1),
    "a configuration that is a list": lambda c: c.update(pretrained_cfg=[1]),
    "classes that are text": lambda c: c.update(num_classes="3"),
    "classes that are a list": lambda c: c.update(num_classes=[3]),
    "classes that are negative": lambda c: c.update(num_classes=-3),
    "classes that are true": lambda c: c.update(num_classes=True),
    "classes that contradict the arguments": lambda c: c.update(num_classes=10),
    "another classifier": lambda c: (c.update(num_classes=10), c["pretrained_cfg"].update(classifier="stem.0.conv")),
    "shifted classes": cfg(label_offset=1),
}


@pytest.mark.timeout(15)  # what is refused takes a tenth of a second, what is built takes minutes
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_configurations(folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    working = folder.parent / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    edit(folder, HOSTILE[what])
    before = contents(folder.parent)
    refused(folder, str(folder))
    assert contents(folder.parent) == before
    assert hub.log() == []


def test_classes_beside_the_arguments_take_no_memory(tmp_path: Path) -> None:
    """A file of the default's 1000 classes, and a configuration that speaks of other numbers in one place alone."""
    save_for_hf(
        timm.create_model("vovnet27_slim", **SIZES), str(tmp_path), model_args=dict(SIZES), safe_serialization=True
    )

    def change(config: dict[str, Any]) -> None:
        config.pop("num_classes")
        config["pretrained_cfg"].update(num_classes=99_999)

    edit(tmp_path, bare(change))
    refused(tmp_path)


def test_where_the_weights_are_is_not_for_the_configuration_to_say(
    model: nn.Module, folder: Path, hub: Hub, tmp_path: Path
) -> None:
    save_file(
        {key: torch.zeros_like(value) for key, value in model.state_dict().items()}, tmp_path / "other.safetensors"
    )
    other = {
        "file": str(tmp_path / "other.safetensors"),
        "url": f"{hub.endpoint}/other.pth",
        "hf_hub_id": "org/evil",
        "hf_hub_filename": "evil.bin",
        "source": "hf-hub",
    }
    edit(folder, cfg(**other))
    try:
        loaded = load_timm_folder(folder)
    except InputError:
        pass
    else:
        assert equal(loaded, model)
    assert hub.log() == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        '"vovnet39"',
        "\ufeff{}",
        "[" * 100_000,
        '{"architecture": ' + "9" * 5000 + "}",
        '{"architecture": "vovnet39", "num_classes": ' + "9" * 5000 + "}",
        '{"architecture": "vovnet39", "model_args": {"stem_chs": ' + "[" * 900 + "]" * 900 + "}}",
    ],
)
def test_configurations_that_are_not_timms(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    refused(folder, "config.json" if len(text) < 1000 else "")


def test_a_configuration_that_is_not_text_or_huge(folder: Path) -> None:
    (folder / "config.json").write_bytes(b"\xff\xfe\x00\x01")
    refused(folder, "config.json")
    (folder / "config.json").write_text(json.dumps({"architecture": "vovnet39", "x": "x" * 2**24}))
    refused(folder, "config.json", "larger")
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    refused(folder, "config.json")


# Weights.


def header(data: bytes) -> dict[str, Any]:
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length])


def with_header(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    values = header(data)
    change(values)
    text = json.dumps(values).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def claims_more(values: dict[str, Any]) -> None:
    """The last tensor is said to be a GiB."""
    last = max((value for key, value in values.items() if key != "__metadata__"), key=lambda v: v["data_offsets"][1])
    start = last["data_offsets"][0]
    last.update(shape=[2**28], data_offsets=[start, start + 2**30])


def overlaps(values: dict[str, Any]) -> None:
    first, second = [value for key, value in values.items() if key != "__metadata__"][:2]
    second["data_offsets"] = first["data_offsets"]


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "seven bytes": lambda data: data[:7],
    "the header alone": lambda data: data[: 8 + struct.unpack("<Q", data[:8])[0]],
    "half": lambda data: data[: len(data) // 2],
    "all but a byte": lambda data: data[:-1],
    "a byte more": lambda data: data + b"x",
    "a header of more than there is": lambda data: struct.pack("<Q", 10**6) + data[8:],
    "a header of 16 EiB": lambda data: b"\xff" * 8 + data[8:],
    "a header of 90 MB": lambda data: struct.pack("<Q", 90 * 10**6) + data[8:],
    "a bit in the length": lambda data: bytes([data[0] ^ 1]) + data[1:],
    "a bit in the header": lambda data: data[:9] + bytes([data[9] ^ 1]) + data[10:],
    "tensors of more than there is": lambda data: with_header(data, claims_more),
    "tensors over each other": lambda data: with_header(data, overlaps),
    "a header that is a list": lambda data: struct.pack("<Q", 2) + b"[]",
    "no tensors": lambda data: struct.pack("<Q", 2) + b"{}",
    "a pickle": lambda data: pickle.dumps({"weights": 1}),
    "a page": lambda data: b"<!DOCTYPE html><html></html>",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights(folder: Path, damage: str) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    refused(folder, "model.safetensors")


def test_weights_of_another_network(model: nn.Module, folder: Path) -> None:
    path = folder / "model.safetensors"
    state = load_file(path)
    renamed = {key.replace("stem.0", "stem.9"): value for key, value in state.items()}
    turned = {key: value.flatten() if key == "head.fc.weight" else value for key, value in state.items()}
    for wrong in (renamed, turned, {**state, "more": torch.zeros(1)}):
        save_file(wrong, path)
        refused(folder)


PICKLES = ("pytorch_model.bin", "pytorch_model.pth", "model.pth", "model.bin", "last.pt")


@pytest.mark.parametrize("how", ["beside", "instead", "in the place of"])
def test_pickles_are_never_read(model: nn.Module, folder: Path, tmp_path: Path, how: str) -> None:
    mark, file = tmp_path / "ran", io.BytesIO()
    torch.save({**model.state_dict(), "x": RunsCode(mark)}, file)
    for name in PICKLES:
        (folder / name).write_bytes(file.getvalue())
    if how == "beside":
        assert equal(load_timm_folder(folder), model)
    else:
        (folder / "model.safetensors").unlink()
        if how == "in the place of":
            (folder / "model.safetensors").write_bytes(file.getvalue())
        refused(folder, "model.safetensors")
    assert not mark.exists()


@pytest.mark.parametrize("form", ["malicious", "harmless"])
def test_pickles_on_the_hub_are_not_even_asked_for(
    model: nn.Module, folder: Path, hub: Hub, tmp_path: Path, form: str
) -> None:
    mark, file = tmp_path / "ran", io.BytesIO()
    torch.save(model.state_dict() | ({"x": RunsCode(mark)} if form == "malicious" else {}), file)
    hub.create(
        "org/pickle", {"config.json": (folder / "config.json").read_bytes(), **dict.fromkeys(PICKLES, file.getvalue())}
    )
    for name in ("org/pickle", "hf-hub:org/pickle"):
        with pytest.raises(InputError, match=r"org/pickle.*model\.safetensors"):
            load_classifier(name)
    assert not mark.exists()
    assert not [request.path for request in hub.log() if request.path.endswith(PICKLES)]


# Links.


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("target", ["absolute", "relative", "through a link inside", "dangling"])
def test_links_out_of_the_folder_are_not_followed(folder: Path, tmp_path: Path, name: str, target: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    if target == "dangling":
        (folder / name).unlink()
    else:
        os.rename(folder / name, outside / name)
    if target == "relative":
        (folder / name).symlink_to(Path("..", "outside", name))
    elif target == "through a link inside":
        (folder / "step").symlink_to(outside)
        (folder / name).symlink_to(Path("step", name))
    else:
        (folder / name).symlink_to(outside / name)
    refused(folder, name)
    refused(f"{folder}/../folder", name)


def test_links_inside_the_folder_and_to_it_are_followed(model: nn.Module, folder: Path, tmp_path: Path) -> None:
    os.rename(folder / "model.safetensors", folder / "weights-of-may")
    (folder / "model.safetensors").symlink_to("weights-of-may")
    (tmp_path / "link").symlink_to(folder)
    assert equal(load_timm_folder(tmp_path / "link"), model)


def test_the_hubs_cache_is_made_of_links(model: nn.Module, folder: Path, hub: Hub, tmp_path: Path) -> None:
    commit = hub.create("org/m", contents(folder))
    assert equal(load_classifier("org/m"), model)
    snapshot = tmp_path / "hub-cache" / "models--org--m" / "snapshots" / commit
    assert (snapshot / "model.safetensors").is_symlink()
    assert equal(load_classifier(snapshot), model)
    # A cache that somebody prepared is held to the same.
    (snapshot / "model.safetensors").unlink()
    (snapshot / "model.safetensors").symlink_to(folder / "model.safetensors")
    for name in (snapshot, f"org/m@{commit}"):
        with pytest.raises(InputError, match=r"model\.safetensors.*link"):
            load_classifier(name)


def test_names_of_the_hub(model: nn.Module, folder: Path, hub: Hub) -> None:
    first = hub.create("org/m", contents(folder))
    hub.tag("org/m", "v1")
    hub.commit("org/m", {"model.safetensors": b"damaged later"})
    for name in (f"org/m@{first}", "org/m@v1", "hf-hub:org/m@v1"):
        assert equal(load_classifier(name), model)
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_classifier("org/m")
