"""Detectors from anyone: hostile folders, snapshots and repositories run nothing, cost nothing and write nothing."""

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
import torch
from hostile import Memory, RunsCode
from local_hub import Hub
from safetensors.torch import load_file, save_file
from support import command, contents
from torch.nn.modules.module import register_module_module_registration_hook

from vovnet.detection.checkpoints.folder import save_detector
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.models.build import build_detector
from vovnet.errors import InputError
from vovnet.hub import convert_checkpoint, load_detector, verify

SIZES: dict[str, Any] = {"stem_chs": [8, 8, 8], "stage_conv_chs": [8, 8, 8, 8], "stage_out_chs": [8, 8, 8, 8]}
MODEL = ModelRecipe(
    backbone="vovnet27_slim",
    backbone_args=SIZES,
    fpn_channels=8,
    box_representation_size=16,
    num_classes=2,
    min_size=64,
    max_size=96,
)
CATEGORIES = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}]
LARGEST = 500_000
"""Numbers, 2 MB: far more than a tensor of the network above has, far less than a hostile one's would."""
MODULES = 20_000
"""The detector above has some hundreds; a hostile one's take minutes to build, even without memory."""


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    torch.manual_seed(0)
    save_detector(folder, build_detector(MODEL), MODEL, CATEGORIES)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A sound one, which a test may damage."""
    copy = tmp_path / "folder"
    copy.mkdir()
    for name, content in contents(saved).items():
        (copy / name).write_bytes(content)
    return copy


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    change(config)
    path.write_text(json.dumps(config))


@contextmanager
def cheap() -> Iterator[None]:
    """Nothing larger or more than the file justifies is made meanwhile."""
    modules: list[str] = []
    counting = register_module_module_registration_hook(lambda parent, name, child: modules.append(name))
    with counting, Memory() as memory:
        yield
    assert memory.largest <= LARGEST
    assert len(modules) <= MODULES


def refused(name: Path | str, *words: str) -> str:
    with cheap(), pytest.raises(InputError) as caught:
        load_detector(name)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def test_the_memory_is_watched(folder: Path) -> None:
    with cheap():
        load_detector(folder)
    with Memory() as memory:
        build_detector(ModelRecipe(backbone="vovnet27_slim", num_classes=2))
    assert memory.largest > LARGEST


# Configurations.


def model(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["model"].update(values)


def backbone(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda config: config["model"]["backbone_args"].update(values)


HOSTILE: dict[str, Callable[[dict[str, Any]], object]] = {
    "a path as backbone": model(backbone="../../../etc/passwd"),
    "an absolute path as backbone": model(backbone="/etc/passwd"),
    "a repository as backbone": model(backbone="hf-hub:org/evil"),
    "a folder as backbone": model(backbone="local-dir:/tmp"),
    "a short repository as backbone": model(backbone="org/evil"),
    "an unknown backbone": model(backbone="vovnet93"),
    "code as backbone": model(backbone="__import__('os').mkdir('ran')"),
    "an environment variable as backbone": model(backbone="${oc.env:HOME}"),
    "a number as backbone": model(backbone=[1]),
    "a file to read": backbone(checkpoint_path="/etc/passwd"),
    "a cache": backbone(cache_dir="/tmp/elsewhere"),
    "an overlay": backbone(pretrained_cfg_overlay={"file": "/etc/passwd"}),
    "a configuration": backbone(pretrained_cfg={"url": "http://127.0.0.1:1/x"}),
    "pretrained": backbone(pretrained=True),
    "code as activation": backbone(act_layer="__import__('os').mkdir('ran')"),
    "a path as norm": backbone(norm_layer="os.mkdir"),
    "a function": backbone(pretrained_filter_fn="os.mkdir"),
    "a class of features": backbone(feature_cls="os.mkdir"),
    "an unknown argument": backbone(evil=1),
    "huge channels": backbone(stem_chs=[10**9] * 3),
    "large channels": backbone(stem_chs=[99_999] * 3),
    "negative channels": backbone(stem_chs=[-8, 8, 8]),
    "channels that are text": backbone(stem_chs="888"),
    "huge depth": backbone(block_per_stage=[99_999] * 4),
    "large depth": backbone(block_per_stage=[500, 1, 1, 1]),
    "huge blocks": backbone(layer_per_block=99_999),
    "large classes that nobody needs": backbone(num_classes=99_999),
    "another device": backbone(device="cpu", stem_chs=[2000, 2000, 8]),
    "a device that is absent": backbone(device="cuda:99"),
    "NaN in the backbone": backbone(drop_path_rate=float("nan")),
    "infinity": backbone(drop_path_rate=float("inf")),
    "a huge pyramid": model(fpn_channels=10**9),
    "a large pyramid": model(fpn_channels=4096),
    "a huge head": model(box_representation_size=10**9),
    "a large head": model(box_representation_size=16_384),
    "huge convolutions": model(rpn_head_convs=10**9),
    "large convolutions": model(rpn_head_convs=16),
    "huge classes": model(num_classes=10**9),
    "classes that are text": model(num_classes="two"),
    "classes that are negative": model(num_classes=-2),
    "huge channels of the image": model(in_chans=10**9),
    "huge images": model(min_size=10**9, max_size=10**9),
    "many anchors": model(anchor_sizes=[[32] * 60] * 5, aspect_ratios=[1.0] * 60),
    "endless anchors": model(anchor_sizes=[[32]] * 10**5),
    "huge anchors": model(anchor_sizes=[[10**30]] * 5),
    "NaN": model(box_score_thresh=float("nan")),
    "NaN in a list": model(aspect_ratios=[float("nan")]),
    "a std of 0": model(image_std=[0.0] * 3),
    "an unknown key": model(evil=1),
    "an unknown key at the top": lambda c: c.update(evil=1),
    "another format": lambda c: c.update(format="evil"),
    "a later version": lambda c: c.update(format_version=99),
    "categories that are text": lambda c: c.update(categories="ab"),
    "a category that is text": lambda c: c["categories"].append("c"),
    "a category with more": lambda c: c["categories"][0].update(path="/etc/passwd"),
    "the model as a list": lambda c: c.update(model=[]),
}


@pytest.mark.timeout(15)  # what is refused takes a tenth of a second, what is built takes minutes
@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_configurations(folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    working = folder.parent / "working"
    working.mkdir()
    monkeypatch.chdir(working)
    edit(folder, HOSTILE[what])
    before = contents(folder.parent)
    refused(folder)
    assert contents(folder.parent) == before
    assert list(working.iterdir()) == []
    assert hub.log() == []


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "\ufeff{}", "[" * 100_000, '{"format": ' + "9" * 5000 + "}", '{"format_version": 1e999}']
)
def test_configurations_that_are_none(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    refused(folder, "config.json")


def test_a_huge_configuration_is_not_read(folder: Path) -> None:
    edit(folder, lambda c: c.update(evil="x" * 2**24))
    refused(folder, "config.json", "larger")


def test_texts_are_data(folder: Path, tmp_path: Path) -> None:
    """A category may be called anything; nobody takes it for a path or a format."""
    names = ["../../../etc/passwd", "{0.__class__} %s ${oc.env:HOME} \x1b[31m </svg>"]
    edit(folder, lambda c: [entry.update(name=name) for entry, name in zip(c["categories"], names, strict=True)])
    assert [entry["name"] for entry in load_detector(folder).categories] == names  # type: ignore[union-attr]


# Weights.


def with_header(data: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    (length,) = struct.unpack("<Q", data[:8])
    values = json.loads(data[8 : 8 + length])
    change(values)
    text = json.dumps(values).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


def claims_more(values: dict[str, Any]) -> None:
    """The last tensor is said to be a GiB."""
    last = max((value for key, value in values.items() if key != "__metadata__"), key=lambda v: v["data_offsets"][1])
    start = last["data_offsets"][0]
    last.update(shape=[2**28], data_offsets=[start, start + 2**30])


def swaps(values: dict[str, Any]) -> None:
    """Two tensors of one shape take each other's place: a sound file of wrong weights."""
    one, two = values["backbone.fpn.layer_blocks.0.0.weight"], values["backbone.fpn.layer_blocks.1.0.weight"]
    one["data_offsets"], two["data_offsets"] = two["data_offsets"], one["data_offsets"]


def bit(place: Callable[[bytes], int]) -> Callable[[bytes], bytes]:
    def flipped(data: bytes) -> bytes:
        i = place(data)
        return data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]

    return flipped


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "the header alone": lambda data: data[: 8 + struct.unpack("<Q", data[:8])[0]],
    "half": lambda data: data[: len(data) // 2],
    "all but a byte": lambda data: data[:-1],
    "a header of more than there is": lambda data: struct.pack("<Q", 10**6) + data[8:],
    "a header of 16 EiB": lambda data: b"\xff" * 8 + data[8:],
    "tensors of more than there is": lambda data: with_header(data, claims_more),
    "tensors in each other's place": lambda data: with_header(data, swaps),
    "a bit in the length": bit(lambda data: 0),
    "a bit in the header": bit(lambda data: 9),
    "a bit in the checksum": bit(lambda data: data.index(b'"sha256":"') + 12),
    "a bit in the first tensor": bit(lambda data: 8 + struct.unpack("<Q", data[:8])[0]),
    "a bit in the middle": bit(lambda data: len(data) // 2),
    "the last bit": bit(lambda data: len(data) - 1),
    "a pickle": lambda data: pickle.dumps({"weights": 1}),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_weights(folder: Path, damage: str) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    damaged = DAMAGES[damage](whole)
    assert damaged != whole
    path.write_bytes(damaged)
    refused(folder, "model.safetensors")


def malicious(mark: Path, **more: Any) -> bytes:
    file = io.BytesIO()
    torch.save({"model": more, "x": RunsCode(mark)}, file)
    return file.getvalue()


PICKLES = ("pytorch_model.bin", "pytorch_model.pth", "model.pth", "last.pt", "best.pt", "optimizer.pt")


@pytest.mark.parametrize("how", ["beside", "instead", "in the place of"])
def test_pickles_are_never_read(folder: Path, tmp_path: Path, how: str) -> None:
    mark = tmp_path / "ran"
    for name in PICKLES:
        (folder / name).write_bytes(malicious(mark))
    if how == "beside":
        load_detector(folder)
    else:
        (folder / "model.safetensors").unlink()
        if how == "in the place of":
            (folder / "model.safetensors").write_bytes(malicious(mark))
        refused(folder, "model.safetensors")
    assert not mark.exists()


@pytest.mark.parametrize("form", ["torch", "old torch", "bare pickle", "nested"])
def test_what_converts_reads_no_code(tmp_path: Path, form: str) -> None:
    mark, out, file = tmp_path / "ran", tmp_path / "out", tmp_path / "evil.pth"
    if form == "torch":
        file.write_bytes(malicious(mark))
    elif form == "old torch":
        torch.save({"model": {"a": RunsCode(mark)}}, file, _use_new_zipfile_serialization=False)
    elif form == "nested":
        torch.save({"model": {"backbone.stem": torch.zeros(1)}, "optimizer": [{"x": (RunsCode(mark),)}]}, file)
    else:
        file.write_bytes(pickle.dumps(RunsCode(mark), protocol=2))
    with pytest.raises(InputError, match=r"evil\.pth") as caught:
        convert_checkpoint(file, out)
    assert "\n" not in str(caught.value)
    assert "code" in str(caught.value)
    command("convert", file, out).refused("evil.pth")
    assert not mark.exists()
    assert not out.exists() or contents(out) == {}
    torch.load(file, weights_only=False) if form != "bare pickle" else pickle.loads(file.read_bytes())
    assert mark.exists()  # it would have run


# Links, and names that climb.


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("relative", [True, False])
def test_links_out_of_the_folder_are_not_followed(folder: Path, tmp_path: Path, name: str, relative: bool) -> None:
    os.rename(folder / name, tmp_path / name)
    (folder / name).symlink_to(Path("..", name) if relative else tmp_path / name)
    refused(folder, name, "link")


def test_the_cache_is_made_of_links(folder: Path, hub: Hub, tmp_path: Path) -> None:
    commit = hub.create("org/d", contents(folder))
    load_detector("org/d")
    snapshot = tmp_path / "hub-cache" / "models--org--d" / "snapshots" / commit
    assert (snapshot / "model.safetensors").is_symlink()
    load_detector(snapshot)
    (tmp_path / "link").symlink_to(snapshot)
    load_detector(tmp_path / "link")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("through", ["snapshot", "blob"])
def test_a_link_in_a_snapshot_leads_nowhere_else(
    folder: Path, hub: Hub, tmp_path: Path, name: str, through: str
) -> None:
    """A cache that somebody prepared: its links stay in the repository's own folder, by path and by name."""
    commit = hub.create("org/d", contents(folder))
    load_detector("org/d")
    link = tmp_path / "hub-cache" / "models--org--d" / "snapshots" / commit / name
    place = link if through == "snapshot" else link.resolve()
    place.unlink()
    place.symlink_to(folder / name)
    for weights in (link.parent, "org/d", f"org/d@{commit}"):
        refused(weights, name, "link")


def test_only_names_that_are_known_are_asked_for(folder: Path, hub: Hub, tmp_path: Path) -> None:
    evil = {"../up": b"x", "../../../../up": b"x", "/up": b"x", "..\\up": b"x", "run.py": b"x", ".git/config": b"x"}
    hub.create("org/d", {**contents(folder), **evil, **dict.fromkeys(PICKLES, b"x")})
    before = {name for name in contents(tmp_path) if not name.startswith("hub-cache/")}
    load_detector("org/d")
    with pytest.raises(InputError):
        verify("org/d")  # it has no sums
    after = contents(tmp_path)
    assert {name for name in after if not name.startswith("hub-cache/")} == before
    assert not [name for name in after if Path(name).name in ("up", "..\\up", "run.py")]
    asked = {request.path.split("/resolve/")[1].partition("/")[2] for request in hub.log()}
    assert asked <= {"config.json", "model.safetensors", "README.md", "manifest.json", "SHA256SUMS"}


def test_a_commit_that_climbs_is_not_followed(folder: Path, hub: Hub, tmp_path: Path) -> None:
    """The server says which commit it gives, and the client makes a folder of that name."""
    hub.create("org/d", contents(folder))
    hub.fail("resolve", times=20, status=200, headers={"X-Repo-Commit": "../../../../up", "ETag": '"../../../up"'})
    before = {name for name in contents(tmp_path) if not name.startswith("hub-cache/")}
    with pytest.raises(InputError):
        load_detector("org/d")
    after = {name for name in contents(tmp_path) if not name.startswith("hub-cache/")}
    assert after == before
    assert not list(tmp_path.parent.glob("up*"))


@pytest.mark.parametrize("name", ["../x", "org/../../x", "org/..", "org/x@../../y", "file:///etc/passwd", "org/x\x00"])
def test_names_that_climb_are_refused(hub: Hub, tmp_path: Path, name: str) -> None:
    before = contents(tmp_path)
    refused(name)
    assert contents(tmp_path) == before


def test_a_flipped_bit_in_a_download_is_found(folder: Path, hub: Hub) -> None:
    hub.create("org/d", contents(folder))
    hub.flip("safetensors")
    refused("org/d", "model.safetensors")


def test_hostile_weights_of_the_right_keys(folder: Path) -> None:
    """Other types and NaN in a file without a checksum: whoever loads it gets what is in it, or an error."""
    path = folder / "model.safetensors"
    state = load_file(path)
    save_file(
        {key: value.to(torch.float64) if value.is_floating_point() else value for key, value in state.items()}, path
    )
    loaded = load_detector(folder)
    assert {value.dtype for value in loaded.state_dict().values()} == {value.dtype for value in state.values()}
