"""The file that is converted: a checkpoint, a safetensors file, a folder of timm or of the Hub's cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from local_hub import Hub
from safetensors.torch import save_file
from timm.models import save_for_hf

from vovnet.errors import InputError
from vovnet.hub.weights_file import read_weights_file


@pytest.fixture(scope="module")
def model() -> Any:
    return timm.create_model("vovnet27_slim", num_classes=3)


@pytest.fixture
def folder(model: Any, tmp_path: Path) -> Path:
    save_for_hf(model, str(tmp_path / "timm"), safe_serialization=True)
    return tmp_path / "timm"


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_a_folder_of_timm_and_its_weights_are_one(model: Any, folder: Path, name: str) -> None:
    file = read_weights_file(folder / name)
    assert (file.path, file.name) == (folder / "model.safetensors", name or "timm")
    assert file.config is not None
    assert file.config["architecture"] == "vovnet27_slim"
    assert file.beside == ()
    state = model.state_dict()
    assert file.tensors.keys() == state.keys()
    assert all(torch.equal(file.tensors[key], value) for key, value in state.items())


def test_a_folder_of_the_hubs_cache_has_links(model: Any, folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "models--timm--slim"
    snapshot = cache / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (cache / "blobs").mkdir()
    for i, name in enumerate(("config.json", "model.safetensors")):
        (folder / name).rename(cache / "blobs" / str(i))
        (snapshot / name).symlink_to(f"../../blobs/{i}")
    for given in (snapshot, snapshot / "model.safetensors"):
        file = read_weights_file(given)
        assert file.config is not None
        assert file.tensors.keys() == model.state_dict().keys()


@pytest.mark.parametrize("name", ["timm/slim", "hf-hub:timm/slim", "timm/slim@main"])
def test_a_repository_of_the_hub(name: str, model: Any, folder: Path, hub: Hub) -> None:
    hub.create("timm/slim", {file.name: file.read_bytes() for file in folder.iterdir()})
    file = read_weights_file(Path(name))
    assert file.config is not None
    assert file.tensors.keys() == model.state_dict().keys()
    assert file.name == f"timm/slim@{hub.head('timm/slim')}"


@pytest.mark.parametrize("given", [".", "../timm", "local-dir:.", "local-dir:../timm", "local-dir:{}", "{}"])
def test_a_folder_by_any_path_is_called_by_its_name(given: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    file = read_weights_file(given.format(folder))
    assert file.name == "timm"
    assert file.config is not None


@pytest.mark.parametrize("given", ["local-dir:absent", "local-dir:timm/slim", "local-dir:", "hf-hub:timm"])
def test_a_prefix_says_what_it_must_be(given: str, hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=given.removeprefix("local-dir:") or given):
        read_weights_file(given)
    assert not hub.log()


def test_a_path_never_asks_the_hub(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "files").mkdir()
    for given in ("files/nope", "nope.pth", "some/nope.safetensors", "./nope/b", "nope"):
        with pytest.raises(InputError, match="nope"):
            read_weights_file(given)
    assert not hub.log()


def test_weights_alone_have_no_configuration(model: Any, tmp_path: Path) -> None:
    save_file(model.state_dict(), tmp_path / "r.safetensors")
    torch.save({"model": model.state_dict(), "epoch": 3}, tmp_path / "r.pth")
    assert read_weights_file(tmp_path / "r.safetensors").config is None
    checkpoint = read_weights_file(tmp_path / "r.pth")
    assert (checkpoint.config, checkpoint.beside, checkpoint.path) == (None, ("epoch",), tmp_path / "r.pth")
    assert checkpoint.name == "r.pth"


@pytest.mark.parametrize("config", [{"model_type": "bert"}, {"format": "vovnet-detector", "model": {}}])
def test_a_configuration_of_other_files_is_not_the_weights_own(
    config: dict[str, Any], model: Any, tmp_path: Path
) -> None:
    """In a folder of downloads any model's may lie beside it; only model.safetensors belongs to config.json."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    for name in ("slim.safetensors", "model.safetensors"):
        save_file(model.state_dict(), tmp_path / name)
    assert read_weights_file(tmp_path / "slim.safetensors").config is None
    with pytest.raises(InputError, match=r"config\.json|detector"):
        read_weights_file(tmp_path / "model.safetensors")


def test_a_configuration_of_timm_counts_beside_any_name(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "slim.safetensors")
    config = read_weights_file(folder / "slim.safetensors").config
    assert config is not None
    assert config["architecture"] == "vovnet27_slim"


def test_what_cannot_be_read_is_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.safetensors").write_bytes(b"no")
    for given in ("empty", "absent.safetensors", "absent.pth", "broken.safetensors"):
        with pytest.raises(InputError, match=given):
            read_weights_file(tmp_path / given)
    (folder / "config.json").write_text(json.dumps({"format": "vovnet-detector", "model": {}}))
    for name in ("", "model.safetensors"):
        with pytest.raises(InputError, match="holds a detector"):
            read_weights_file(folder / name)


def test_a_link_out_of_the_folder_is_not_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(InputError, match="link"):
        read_weights_file(folder)
