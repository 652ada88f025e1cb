"""A folder made ready for others: what is written beside the weights, and what is kept out of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
from hub_folders import SECRETS, Made, edit_json
from support import contents
from timm.models import save_for_hf
from torch import nn

import vovnet  # noqa: F401 (registers our models)
from vovnet.errors import InputError
from vovnet.hub.manifest import SUMMED_FILES, check_sums, read_manifest
from vovnet.hub.release import Description, check_architecture, describe, is_detector, load_folder, refuse_local_paths

Copy = Callable[[Path], Path]


def test_a_run_is_described_elsewhere_and_stays_as_it_was(run: Path, tmp_path: Path) -> None:
    before = contents(run)
    describe(run, tmp_path, None, Description("me/it", "apache-2.0", "my images"))
    assert contents(run) == before
    written = contents(tmp_path)
    assert set(written) == {"README.md", "config.json", "manifest.json", "SHA256SUMS"}
    assert json.loads(written["config.json"]) == json.loads(before["config.json"])
    assert b"my images" in written["README.md"]
    (tmp_path / "model.safetensors").write_bytes(before["model.safetensors"])
    check_sums(tmp_path)
    assert read_manifest(tmp_path).source is None


def test_no_path_of_this_machine_is_written(run: Path, tmp_path: Path) -> None:
    """The recipe names images, annotations and the weights that the run began with; the folder has a path, too."""
    assert all(secret in (run / "recipe.yaml").read_text() for secret in SECRETS[:3])
    describe(run, tmp_path, None, Description("me/it"))
    text = b"".join(contents(tmp_path).values()).decode()
    assert not [secret for secret in (*SECRETS, str(run), str(tmp_path), run.name) if secret in text]


def test_describing_twice_writes_the_same(slim: Made, copied: Copy) -> None:
    folder = copied(slim.folder)
    source = read_manifest(folder).source
    for _ in range(2):
        describe(folder, folder, source, Description(license="other"))
    assert contents(folder) == contents(slim.folder)


def test_the_name_of_the_network_is_a_choice(slim: Made, copied: Copy) -> None:
    folder = copied(slim.folder)
    source = read_manifest(folder).source
    describe(folder, folder, source, Description(architecture="vovnet"))
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "vovnet27_slim"
    assert "model_args" not in config
    assert "vovnet39a" not in (folder / "README.md").read_text()
    describe(folder, folder, source, Description(license="other", architecture="timm"))
    assert json.loads((folder / "config.json").read_text()) == json.loads((slim.folder / "config.json").read_text())
    with pytest.raises(InputError, match="architecture must be timm or vovnet, got 'keras'"):
        check_architecture("keras")


def test_which_kind_of_folder_it_is(slim: Made, run: Path, tmp_path: Path) -> None:
    assert is_detector(run)
    assert not is_detector(slim.folder)
    assert hasattr(load_folder(run), "roi_heads")
    assert not load_folder(slim.folder).training
    with pytest.raises(InputError, match=r"has no config\.json"):
        is_detector(tmp_path)


def test_a_folder_that_timm_wrote(tmp_path: Path) -> None:
    """The configuration of another network, with names of classes, does not change."""
    model = timm.create_model("resnet18", num_classes=2)
    save_for_hf(model, tmp_path, {"label_names": ["/m/01g317", "cat"]}, safe_serialization=True)
    before = json.loads((tmp_path / "config.json").read_text())
    describe(tmp_path, tmp_path, None, Description("me/it", "mit"))
    assert json.loads((tmp_path / "config.json").read_text()) == before
    assert "With timm alone" in (tmp_path / "README.md").read_text()
    assert set(SUMMED_FILES) | {"SHA256SUMS"} == set(contents(tmp_path))


def test_a_network_of_ours_that_timm_saved_becomes_one_of_timms(tmp_path: Path) -> None:
    model: Any = timm.create_model("vovnet27_slim", num_classes=2, in_chans=1)
    save_for_hf(model, tmp_path, {}, safe_serialization=True)
    describe(tmp_path, tmp_path, None, Description("me/it", "mit"))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == "vovnet39a"
    assert load_folder(tmp_path).state_dict().keys() == model.state_dict().keys()


LOCAL = ["/home/me/data", "~/data", "~", "C:\\data", "d:/data", "\\\\server\\share", "file:///home/me/x", "/"]


@pytest.mark.parametrize("value", LOCAL)
def test_local_paths_are_refused_wherever_they_are(value: str) -> None:
    for config in (
        {"pretrained_cfg": {"file": value}},
        {"model": {"backbone_args": {"list": [1, {"deep": value}]}}},
        {"a": value},
    ):
        with pytest.raises(InputError, match="is the local path") as error:
            refuse_local_paths(config, "config.json")
        assert json.dumps(value) in str(error.value)


@pytest.mark.parametrize(
    "value", ["bilinear", "stem.0.conv", "https://example.org/a.pth", "me/it", "a / b", "1/2", "x: y", "", "head.fc"]
)
def test_other_texts_are_not_taken_for_paths(value: str) -> None:
    refuse_local_paths({"a": [value], "b": {"c": value}, "n": 1, "z": None}, "config.json")


@pytest.mark.parametrize("text", ["see /home/somebody/data/x.pth", "converted from /tmp/a.pth", "from (~/runs/best)"])
def test_a_path_inside_a_text_is_refused_too(text: str) -> None:
    with pytest.raises(InputError, match="local path"):
        refuse_local_paths({"pretrained_cfg": {"description": text}}, "config.json")


def test_a_configuration_with_a_path_is_not_published(slim: Made, copied: Copy, tmp_path: Path) -> None:
    folder = copied(slim.folder)
    edit_json(folder / "config.json", lambda config: config["pretrained_cfg"].update(file="/home/me/a.pth"))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(InputError, match=r"/home/me/a\.pth"):
        describe(folder, out, None, Description())
    assert contents(out) == {}


def test_weights_that_diverged_are_not_published(slim: Made, tmp_path: Path) -> None:
    model: Any = load_folder(slim.folder)
    nn.init.constant_(model.head.fc.bias, float("nan"))
    save_for_hf(model, tmp_path, {}, safe_serialization=True)
    with pytest.raises(InputError, match="NaN or infinity"):
        describe(tmp_path, tmp_path, None, Description())
    assert "SHA256SUMS" not in contents(tmp_path)
