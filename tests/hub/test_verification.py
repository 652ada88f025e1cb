"""`vovnet verify`: every kind of damage ends non-zero and is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hub_folders import Made, edit_json, flip_a_bit, sum_anew
from local_hub import ALWAYS, Hub
from safetensors.torch import load_file, save_file
from support import command, contents

from vovnet.hub import publish, verify
from vovnet.hub.release import Description, describe

Copy = Callable[[Path], Path]
FILES = ["README.md", "SHA256SUMS", "config.json", "manifest.json", "model.safetensors"]


@pytest.fixture
def folder(slim: Made, copied: Copy) -> Path:
    return copied(slim.folder)


@pytest.fixture(scope="module")
def described_run(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector's five files, as they are published."""
    folder = tmp_path_factory.mktemp("detector") / "out"
    folder.mkdir()
    describe(run, folder, None, Description("me/it"))
    shutil.copy(run / "model.safetensors", folder)
    return folder


@pytest.fixture
def detector(described_run: Path, copied: Copy) -> Path:
    return copied(described_run)


def damaged(folder: object, *words: object) -> str:
    """The line of error; nothing is said to hold."""
    outcome = command("verify", folder)
    assert outcome.code == 1
    assert outcome.out == ""
    return outcome.refused(*words)


def test_good_folders(slim: Made, described_run: Path) -> None:
    for folder, outputs in ((slim.folder, 2), (described_run, 10)):
        before = contents(folder)
        outcome = command("verify", folder)
        assert outcome.code == 0, outcome.err
        assert str(folder) in outcome.out
        assert f"{outputs} outputs" in outcome.out
        assert contents(folder) == before
        found = verify(folder)
        assert (found.outputs, found.folder) == (outputs, folder)
        assert found.difference < 1e-5


def test_other_files_beside_them_do_not_matter(folder: Path) -> None:
    (folder / "last.pt").write_bytes(b"\x80")
    assert command("verify", folder).code == 0


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_bit(name: str, folder: Path) -> None:
    flip_a_bit(folder / name)
    damaged(folder, "SHA" if name == "SHA256SUMS" else name)  # a digit of the sums may become another digit


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(name: str, folder: Path) -> None:
    (folder / name).unlink()
    damaged(folder, name)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file(name: str, folder: Path) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 3])
    damaged(folder, name)


@pytest.mark.parametrize("name", FILES)
def test_a_link_out_of_the_folder(name: str, folder: Path, tmp_path: Path) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    damaged(folder, name, "leads out of its folder")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/model.safetensors", "model.safetensors"])
def test_sums_that_name_something_else(name: str, folder: Path) -> None:
    with (folder / "SHA256SUMS").open("a") as file:
        file.write(f"{'0' * 64}  {name}\n")
    damaged(folder, "SHA256SUMS")


def test_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    damaged(tmp_path, "SHA256SUMS")
    damaged(tmp_path / "file", "is a file")
    damaged(tmp_path / "absent", "absent")
    command("verify", tmp_path, "--revision", "main").refused("revision", "local path")


# With sums that fit, so that something else has to notice.


def test_changed_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["stages.1.blocks.0.conv_mid.0.conv.weight"] *= 1.1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    sum_anew(folder)
    damaged(folder, "features differs", "logits differs")


def test_another_last_layer(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["head.fc.bias"] = tensors["head.fc.bias"].roll(1)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    sum_anew(folder)
    assert "features" not in damaged(folder, "logits differs")


def test_a_detectors_changed_weights(detector: Path) -> None:
    """With and without the checksum that the file itself carries."""
    tensors = load_file(detector / "model.safetensors")
    tensors["roi_heads.mask_predictor.mask_fcn_logits.bias"] += 1
    save_file(tensors, detector / "model.safetensors", {"format": "pt"})
    sum_anew(detector)
    assert "box" not in damaged(detector, "mask.logits differs")


@pytest.mark.parametrize("where", [0, 4, b"weight", b"dtype", b"offsets", None, -1])
def test_a_flipped_bit_of_a_detectors_weights(where: int | bytes | None, detector: Path) -> None:
    """Bits in the header's length, the header, the middle and the last number; the file itself has a checksum."""
    path = detector / "model.safetensors"
    flip_a_bit(path, path.read_bytes().index(where) if isinstance(where, bytes) else where)
    sum_anew(detector)
    damaged(detector, "model.safetensors")


@pytest.mark.parametrize("where", [0, 4, b"weight", b"dtype", b"offsets"])
def test_a_flipped_bit_in_a_classifiers_header(where: int | bytes, folder: Path) -> None:
    path = folder / "model.safetensors"
    flip_a_bit(path, path.read_bytes().index(where) if isinstance(where, bytes) else where)
    sum_anew(folder)
    damaged(folder, folder)


def test_changed_records(folder: Path, detector: Path) -> None:
    for place, output in ((folder, "logits"), (detector, "rpn.objectness")):

        def change(manifest: Any, output: str = output) -> None:
            values = manifest["outputs"][output]["values"]
            values[len(values) // 2] += manifest["outputs"][output]["largest"] / 100

        edit_json(place / "manifest.json", change)
        sum_anew(place)
        damaged(place, f"{output} differs")


@pytest.mark.parametrize("change", [lambda outputs: outputs.pop("logits"), dict.clear])
def test_records_that_are_missing(change: Callable[[Any], Any], folder: Path) -> None:
    edit_json(folder / "manifest.json", lambda manifest: change(manifest["outputs"]))
    sum_anew(folder)
    damaged(folder, "logits")


def test_a_manifest_of_another_version(folder: Path) -> None:
    edit_json(folder / "manifest.json", lambda manifest: manifest.update(format_version=2))
    sum_anew(folder)
    damaged(folder, "manifest.json", "version 2")


def test_another_preprocessing_of_a_detector(detector: Path) -> None:
    def change(config: Any) -> None:
        for part in ("model", "preprocessing"):
            for key in ("mean", "image_mean"):
                if config[part].get(key):
                    config[part][key] = [0.5, 0.4, 0.3]

    edit_json(detector / "config.json", change)
    sum_anew(detector)
    damaged(detector, "differs")


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "vovnet39"},
        {"architecture": "no_such_network"},
        {"num_classes": 8},
        {"model_args": {"residual": False}},
        {"model_args": {"checkpoint_path": "/etc/passwd"}},
        {"architecture": ["vovnet39a"]},
        {"pretrained_cfg": "x"},
    ],
)
def test_another_configuration(change: dict[str, Any], folder: Path) -> None:
    edit_json(folder / "config.json", lambda config: config.update(change))
    sum_anew(folder)
    damaged(folder)


def test_a_network_without_its_shortcut_is_another(folder: Path) -> None:
    """``residual`` has no weights: keys and shapes fit, and the outputs alone tell."""
    from timm import create_model
    from timm.models import save_for_hf

    torch.manual_seed(0)
    model = create_model("vovnet39a", num_classes=2, residual=True, block_per_stage=[1, 1, 2, 2])
    for path in folder.iterdir():
        path.unlink()
    save_for_hf(model, folder, {"residual": True, "block_per_stage": [1, 1, 2, 2]}, safe_serialization=True)
    edit_json(folder / "config.json", lambda config: config.update(model_args=arguments(residual=True)))
    describe(folder, folder, None, Description("me/it"))
    assert command("verify", folder).code == 0
    edit_json(folder / "config.json", lambda config: config.update(model_args=arguments(residual=False)))
    sum_anew(folder)
    damaged(folder, "differs")


def arguments(residual: bool) -> dict[str, Any]:
    return {"residual": residual, "block_per_stage": [1, 1, 2, 2]}


# On the Hub.


@pytest.fixture
def published(hub: Hub, token: str, slim: Made) -> str:
    publish(slim.folder, "me/slim", yes=True, license="other", private=False)
    return "me/slim"


def test_a_repository(hub: Hub, published: str, slim: Made) -> None:
    outcome = command("verify", published)
    assert outcome.code == 0, outcome.err
    assert "me/slim: " in outcome.out
    got = {seen.path.rpartition("/")[2] for seen in hub.log() if seen.method == "GET" and "/resolve/" in seen.path}
    assert got == set(FILES)


def test_a_revision(hub: Hub, published: str) -> None:
    good = hub.head(published)
    hub.tag(published, "v1")
    hub.commit(published, {"config.json": b"{}"})
    damaged(published, "config.json has SHA-256")
    for name, arguments in ((published, ["--revision", "v1"]), (f"{published}@v1", []), (f"{published}@{good}", [])):
        assert command("verify", name, *arguments).code == 0
    damaged(f"{published}@v2", "v2")


@pytest.mark.parametrize("name", FILES)
def test_a_bit_flipped_on_the_way(name: str, hub: Hub, published: str) -> None:
    hub.flip(f"resolve/.*/{name}$", ALWAYS)
    damaged(published, "SHA" if name == "SHA256SUMS" else name)  # a digit of the sums may become another digit


@pytest.mark.parametrize("name", FILES)
def test_a_repository_without_a_file(name: str, hub: Hub, published: str) -> None:
    files = {path: data for path, data in hub.files(published).items() if path != name}
    hub.create("me/half", files)
    damaged("me/half", name)


def test_only_the_fixed_files_are_fetched(hub: Hub, published: str, tmp_path: Path) -> None:
    """Not the pickle beside them, and nothing that the sums name."""
    hub.commit(published, {"pytorch_model.bin": b"\x80", "evil.py": b"raise SystemExit"})
    assert command("verify", published).code == 0
    sums = hub.files(published)["SHA256SUMS"] + b"0" * 64 + b"  evil.py\n"
    hub.commit(published, {"SHA256SUMS": sums})
    damaged(published, "SHA256SUMS", "evil.py")
    asked = " ".join(seen.path for seen in hub.log())
    assert "evil.py" not in asked
    assert "pytorch_model.bin" not in asked


def test_a_private_repository_without_a_token(hub: Hub, slim: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.create("me/secret", contents(slim.folder), private=True)
    damaged("me/secret", "me/secret", "hf auth login")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert command("verify", "me/secret").code == 0


def test_with_a_warm_cache_no_network_is_needed(hub: Hub, published: str, offline: Callable[[], None]) -> None:
    assert command("verify", published).code == 0
    offline()
    seen = hub.log()
    assert command("verify", published).code == 0
    assert hub.log() == seen
    damaged("me/other", "me/other", "README.md", "HF_ENDPOINT", "folder", "cache")


def test_a_classifier_repository_that_is_not_ours(hub: Hub) -> None:
    hub.create("me/timm", {"config.json": json.dumps({"architecture": "resnet18"}).encode()})
    damaged("me/timm", "README.md")
