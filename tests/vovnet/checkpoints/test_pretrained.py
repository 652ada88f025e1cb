"""The sources of ``pretrained=True``: the caller's, a namespace's, the authors'; never a silent second source."""

import dataclasses
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hostile import RunsCode, refused
from local_hub import ALWAYS, Hub
from safetensors.torch import save
from timm.models import _registry, save_for_hf
from torch import nn

import vovnet  # noqa: F401  (registers the models)
from vovnet.checkpoints.pretrained import NAMESPACE_VARIABLE
from vovnet.vovnet import published_keys

SIZES: dict[str, Any] = {
    "stem_chs": (8, 8, 8),
    "stage_conv_chs": (8, 8, 8, 8),
    "stage_out_chs": (8, 8, 8, 8),
    "layer_per_block": 2,
}
"""A vovnet39 that is quickly made and sent."""
FILE = "vovnet39_torchvision.pth"
REPOSITORY = "org/vovnet39.in1k"


def small(seed: int) -> nn.Module:
    """Its weights tell where they came from."""
    torch.manual_seed(seed)
    return timm.create_model("vovnet39", **SIZES).eval()


AUTHORS, HUB, LOCAL = range(3)


@pytest.fixture(scope="module")
def models() -> list[nn.Module]:
    return [small(seed) for seed in (AUTHORS, HUB, LOCAL)]


def published(model: nn.Module) -> bytes:
    """A file as the authors publish theirs."""
    state, file = model.state_dict(), io.BytesIO()
    torch.save({theirs: state[ours] for theirs, ours in published_keys(model).items()}, file)  # type: ignore[arg-type]
    return file.getvalue()


def exported(model: nn.Module, folder: Path, architecture: str = "vovnet39") -> dict[str, bytes]:
    """The two files that timm writes for the Hub."""
    save_for_hf(model, str(folder), model_args=dict(SIZES), safe_serialization=True)
    return {name: (folder / name).read_bytes() for name in ("config.json", "model.safetensors")}


@pytest.fixture
def url(hub: Hub, models: list[nn.Module], monkeypatch: pytest.MonkeyPatch) -> str:
    """The authors' file is at hand, where the registered configuration says."""
    address = hub.put_file(FILE, published(models[AUTHORS])) + "?dl=1"
    for name in ("vovnet39", "vovnet39.in1k"):
        registered = _registry._model_pretrained_cfgs[name]
        assert registered.url.startswith("https://dl.dropbox.com/")
        monkeypatch.setitem(_registry._model_pretrained_cfgs, name, dataclasses.replace(registered, url=address))
    return address


@pytest.fixture
def namespace(hub: Hub, models: list[nn.Module], monkeypatch: pytest.MonkeyPatch) -> str:
    """A namespace is set, which has the weights."""
    hub.create(REPOSITORY, {"model.safetensors": save(dict(models[HUB].state_dict()))})
    monkeypatch.setenv(NAMESPACE_VARIABLE, "org")
    return "org"


def load(**options: Any) -> nn.Module:
    return timm.create_model("vovnet39", pretrained=True, **SIZES | options)


def same(model: nn.Module, expected: nn.Module) -> bool:
    """All of a model's weights are the other's, which may be all of a network where it is a feature extractor."""
    wanted = expected.state_dict()
    state = {key: value for key, value in model.state_dict().items() if not key.startswith("head.")}
    if "stages.0.blocks.0.conv_concat.conv.weight" not in state:
        wanted = {key.replace(".", "_", 1): value for key, value in wanted.items()}
    assert len(state) > 50
    return all(torch.equal(value, wanted[key]) for key, value in state.items())


def asked(hub: Hub) -> set[str]:
    return {request.path for request in hub.log()}


# The authors' file.


def test_without_any_setting_it_is_the_authors_file(
    url: str, hub: Hub, models: list[nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    assert same(load(), models[AUTHORS])
    told = capsys.readouterr().err
    assert url in told
    assert "SHA-256" in told
    assert "no licence that we know of" in told
    assert same(load(), models[AUTHORS])
    assert timm.create_model("vovnet39.in1k", pretrained=True, **SIZES).pretrained_cfg["tag"] == "in1k"
    assert capsys.readouterr().err == ""
    assert hub.log() == [("GET", f"/files/{FILE}", 200)]


def test_the_result_computes_what_the_authors_does(url: str, models: list[nn.Module]) -> None:
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(load().eval()(image), models[AUTHORS](image))
        features = load(features_only=True, out_indices=[4]).eval()(image)
        assert torch.equal(features[0], models[AUTHORS].forward_features(image))


def test_without_pretrained_nobody_is_asked(url: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAMESPACE_VARIABLE, "not a name/at all")
    timm.create_model("vovnet39", **SIZES)
    timm.create_model("vovnet39", pretrained=False, features_only=True, **SIZES)
    assert hub.log() == []


def test_a_dead_link_is_an_error(url: str, hub: Hub, tmp_path: Path) -> None:
    hub.fail("files", times=ALWAYS, status=404)
    refused(load, url, "404", str(tmp_path / "torch" / "hub" / "checkpoints" / FILE))
    assert asked(hub) == {f"/files/{FILE}"}


# A namespace.


def test_a_namespace_takes_the_authors_place(
    url: str, namespace: str, hub: Hub, models: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert same(load(), models[HUB])  # set after the import
    assert same(load(features_only=True), models[HUB])
    assert f"/files/{FILE}" not in asked(hub)
    assert {path for path in asked(hub) if "pytorch_model" in path} == set()
    monkeypatch.setenv(NAMESPACE_VARIABLE, "")  # as good as none
    assert same(load(), models[AUTHORS])
    monkeypatch.delenv(NAMESPACE_VARIABLE)
    assert same(load(), models[AUTHORS])
    monkeypatch.setenv(NAMESPACE_VARIABLE, "org")
    assert same(load(), models[HUB])


def test_a_namespace_works_from_a_warm_cache(
    url: str, namespace: str, hub: Hub, models: list[nn.Module], offline: Callable[[], None]
) -> None:
    load()
    hub.down()
    assert same(load(), models[HUB])
    offline()
    assert same(load(), models[HUB])


@pytest.mark.parametrize("trouble", ["absent", "without the file", "private", "failing", "cut off", "damaged"])
def test_a_namespace_that_fails_is_never_made_up_for(
    url: str, hub: Hub, models: list[nn.Module], monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    whole = save(dict(models[HUB].state_dict()))
    files = {"model.safetensors": whole[:1000] if trouble == "damaged" else whole}
    if trouble != "absent":
        hub.create(
            REPOSITORY, {"README.md": b""} if trouble == "without the file" else files, private=trouble == "private"
        )
    if trouble == "failing":
        hub.fail("resolve", times=ALWAYS, status=503)
    if trouble == "cut off":
        hub.cut("resolve", times=ALWAYS)
    monkeypatch.setenv(NAMESPACE_VARIABLE, "org")
    refused(load, REPOSITORY)
    assert asked(hub)
    assert f"/files/{FILE}" not in asked(hub)


def test_a_namespace_with_a_pickle_in_the_weights_place(
    url: str, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.create(REPOSITORY, {"pytorch_model.bin": malicious(tmp_path / "ran")})
    monkeypatch.setenv(NAMESPACE_VARIABLE, "org")
    refused(load, REPOSITORY)
    assert not (tmp_path / "ran").exists()
    assert f"/files/{FILE}" not in asked(hub)


def test_a_namespace_out_of_reach_shows_the_ways_out(url: str, namespace: str, hub: Hub) -> None:
    hub.down()
    refused(load, REPOSITORY, "model.safetensors", "HF_ENDPOINT", "folder", "cache")


@pytest.mark.parametrize("value", ["a/b", "../x", "https://hub.example", ".", "a b", "-x", "org@main", "org\n"])
def test_what_is_no_namespace_is_refused(url: str, hub: Hub, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(NAMESPACE_VARIABLE, value)
    refused(load, NAMESPACE_VARIABLE, repr(value))
    assert hub.log() == []


# What the caller names goes before both.


@pytest.fixture
def sources(hub: Hub, models: list[nn.Module], tmp_path: Path) -> dict[str, Callable[..., nn.Module]]:
    """Loaders of one and the same model by the ways in which a caller can name it."""
    files = exported(models[LOCAL], tmp_path / "folder")
    (tmp_path / "theirs.pth").write_bytes(published(models[LOCAL]))
    commit = hub.create("me/mine", files)
    hub.commit("me/mine", {"model.safetensors": b"damaged later"})
    hub.create("me/whole", files)

    def by_name(name: str) -> Callable[..., nn.Module]:
        return lambda **options: timm.create_model(name, pretrained=True, **options)

    def by_overlay(**overlay: str) -> Callable[..., nn.Module]:
        return lambda **options: load(pretrained_cfg_overlay=overlay, **options)

    return {
        "a published file": by_overlay(file=str(tmp_path / "theirs.pth")),
        "a safetensors file": by_overlay(file=str(tmp_path / "folder" / "model.safetensors")),
        "a folder": by_name(f"local-dir:{tmp_path / 'folder'}"),
        "a folder by overlay": by_overlay(source="local-dir", file=str(tmp_path / "folder")),
        "a repository's commit": by_name(f"hf-hub:me/mine@{commit}"),
        "a repository": by_name("hf-hub:me/whole"),
        "a repository by overlay": by_overlay(hf_hub_id="me/whole"),
        "an address": by_overlay(url=hub.put_file("elsewhere.pth", published(models[LOCAL]))),
    }


SOURCES = (
    "a published file",
    "a safetensors file",
    "a folder",
    "a folder by overlay",
    "a repository's commit",
    "a repository",
    "a repository by overlay",
    "an address",
)


@pytest.mark.parametrize("source", SOURCES)
def test_what_the_caller_names_goes_first(
    url: str,
    namespace: str,
    hub: Hub,
    models: list[nn.Module],
    sources: dict[str, Callable[..., nn.Module]],
    source: str,
) -> None:
    before = set(hub.log())
    assert same(sources[source](), models[LOCAL])
    assert same(sources[source](features_only=True), models[LOCAL])
    other = sources[source](num_classes=7)
    assert same(other, models[LOCAL])
    assert other.head.fc.weight.shape == (7, 8)
    paths = {request.path for request in set(hub.log()) - before}
    assert not [path for path in paths if FILE in path or REPOSITORY in path]
    assert bool(paths) == (source.startswith("a repository") or source == "an address")


@pytest.mark.parametrize("where", ["authors", "namespace", *SOURCES])
def test_other_classes_and_grey_images(
    url: str,
    hub: Hub,
    models: list[nn.Module],
    sources: dict[str, Callable[..., nn.Module]],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    expected = models[AUTHORS if where == "authors" else HUB if where == "namespace" else LOCAL].state_dict()
    if where == "namespace":
        hub.create(REPOSITORY, {"model.safetensors": save(dict(models[HUB].state_dict()))})
        monkeypatch.setenv(NAMESPACE_VARIABLE, "org")
    loader = sources.get(where, load)
    adapted = loader(num_classes=7, in_chans=1).state_dict()
    assert adapted["head.fc.weight"].shape == (7, 8)
    for key, value in adapted.items():
        if key == "stem.0.conv.weight":
            torch.testing.assert_close(value, expected[key].sum(dim=1, keepdim=True))
        elif not key.startswith("head."):
            assert torch.equal(value, expected[key]), key


def test_a_local_file_needs_no_network(
    url: str, hub: Hub, sources: dict[str, Callable[..., nn.Module]], models: list[nn.Module]
) -> None:
    hub.down()
    for source in SOURCES[:4]:
        assert same(sources[source](), models[LOCAL])


def test_a_repository_that_fails_is_named(url: str, namespace: str, hub: Hub) -> None:
    hub.create("me/mine", {"README.md": b""})
    for repository in ("me/mine", "me/none"):
        refused(
            lambda repository=repository: load(pretrained_cfg_overlay={"hf_hub_id": repository}),  # type: ignore[misc]
            repository,
        )
    assert not [path for path in asked(hub) if FILE in path or REPOSITORY in path]


# Files that are damaged, or want to be more than data.


def malicious(mark: Path) -> bytes:
    file = io.BytesIO()
    torch.save({"stem.stem_1/conv.weight": torch.zeros(1), "x": RunsCode(mark)}, file)
    return file.getvalue()


def test_the_malicious_file_would_run_where_it_is_let(tmp_path: Path) -> None:
    torch.load(io.BytesIO(malicious(tmp_path / "ran")), weights_only=False)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("form", ["torch", "bare pickle"])
@pytest.mark.parametrize("where", ["authors", "file"])
def test_a_malicious_file_runs_nothing(url: str, hub: Hub, tmp_path: Path, where: str, form: str) -> None:
    mark = tmp_path / "ran"
    content = malicious(mark) if form == "torch" else pickle.dumps({"x": RunsCode(mark)}, protocol=2)
    if where == "authors":
        hub.put_file(FILE, content)
        message = refused(load, FILE)
    else:
        (tmp_path / "evil.pth").write_bytes(content)
        message = refused(lambda: load(pretrained_cfg_overlay={"file": str(tmp_path / "evil.pth")}), "evil.pth")
    assert not mark.exists()
    assert "weights_only=False" not in message  # what would run it is not for us to recommend
    assert "code" in message


def halves(model: nn.Module) -> dict[str, bytes]:
    whole, legacy = published(model), io.BytesIO()
    state = model.state_dict()
    named = {theirs: state[ours] for theirs, ours in published_keys(model).items()}  # type: ignore[arg-type]
    torch.save(named, legacy, _use_new_zipfile_serialization=False)
    old = legacy.getvalue()
    return {
        "half.pth": whole[: len(whole) // 2],
        "almost.pth": whole[:-1],
        "old-half.pth": old[: len(old) // 2],
        "old-start.pth": old[:100],
        "empty.pth": b"",
        "text.pth": b"hello world",
        "page.pth": b"<!DOCTYPE html><html></html>",
        "half.safetensors": save(dict(state))[:5000],
        "lying.safetensors": b"\xff" * 7 + b"\x00" + b"{}",
        "list.pth": saved([1, 2]),
        "number.pth": saved(1),
    }


def saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


DAMAGED = (
    "half.pth",
    "almost.pth",
    "old-half.pth",
    "old-start.pth",
    "empty.pth",
    "text.pth",
    "page.pth",
    "half.safetensors",
    "lying.safetensors",
    "list.pth",
    "number.pth",
)


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, on odd pickles
@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_named(models: list[nn.Module], tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(halves(models[LOCAL])[name])
    refused(lambda: load(pretrained_cfg_overlay={"file": str(tmp_path / name)}), str(tmp_path / name))


def test_a_damaged_file_of_the_authors_is_named_with_what_to_do(url: str, hub: Hub, models: list[nn.Module]) -> None:
    hub.put_file(FILE, published(models[AUTHORS])[:5000])
    message = refused(load, FILE)
    path = next(word for word in message.split() if word.endswith(FILE))
    Path(path).unlink()
    hub.put_file(FILE, published(models[AUTHORS]))
    assert same(load(), models[AUTHORS])


@pytest.mark.parametrize("name", ["no-such-file.pth", "."])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    refused(lambda: load(pretrained_cfg_overlay={"file": str(tmp_path / name)}), str(tmp_path / name))


def test_a_folder_with_a_damaged_config(models: list[nn.Module], tmp_path: Path) -> None:
    """timm reads it; what it raises is its own, but it raises."""
    exported(models[LOCAL], tmp_path / "folder")
    (tmp_path / "folder" / "config.json").write_text(json.dumps({"architecture": "vovnet93"}))
    with pytest.raises((RuntimeError, ValueError, KeyError)):
        timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True)
