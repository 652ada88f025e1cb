"""The sources of ``pretrained=True``: the caller's, a namespace's, the publisher's; never a silent second one."""

import hashlib
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
from published_sources import publish
from published_sources import pytorchcv_file as osmr
from safetensors.torch import save
from support import contents
from timm.models import save_for_hf
from torch import nn
from zips import hostile_archives, zipped

import vovnet  # noqa: F401  (registers the models)
from vovnet.adapters import fpn_backbone
from vovnet.checkpoints.pretrained import NAMESPACE_VARIABLE
from vovnet.vovnet import published_keys

SIZES: dict[str, Any] = {
    "stem_chs": (8, 8, 8),
    "stage_conv_chs": (8, 8, 8, 8),
    "stage_out_chs": (8, 8, 8, 8),
    "layer_per_block": 2,
}
"""A vovnet39 that is quickly made and sent."""
FILE = "vovnet39-0564-63bfa613.pth"
AUTHORS_FILE = "vovnet39_torchvision.pth"
REPOSITORY = "org/vovnet39.osmr_in1k"


def small(seed: int) -> nn.Module:
    """Its weights tell where they came from."""
    torch.manual_seed(seed)
    return timm.create_model("vovnet39", **SIZES).eval()


PUBLISHED, HUB, LOCAL, AUTHORS = range(4)


@pytest.fixture(scope="module")
def models() -> list[nn.Module]:
    return [small(seed) for seed in (PUBLISHED, HUB, LOCAL, AUTHORS)]


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
    """The file of pytorchcv is at hand, zipped, and the authors' file, where the table says."""
    content = osmr(models[PUBLISHED])
    address = hub.put_file(f"{FILE}.zip", zipped([(FILE, content)]))
    publish(monkeypatch, "vovnet39.osmr_in1k", address, hashlib.sha1(content).hexdigest())
    publish(monkeypatch, "vovnet39.in1k", hub.put_file(AUTHORS_FILE, published(models[AUTHORS])) + "?dl=1", sha1=None)
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


# The publisher's file.


def test_without_any_setting_it_is_pytorchcvs_file(
    url: str, hub: Hub, models: list[nn.Module], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = load()
    assert same(model, models[PUBLISHED])
    assert (model.pretrained_cfg["tag"], model.pretrained_cfg["url"]) == ("osmr_in1k", url)
    assert model.pretrained_cfg["license"] == "mit"
    told = capsys.readouterr().err
    assert all(part in told for part in (url, "vovnet39.osmr_in1k", "SHA-1", "MIT"))
    assert same(load(features_only=True), models[PUBLISHED])
    assert same(timm.create_model("vovnet39.osmr_in1k", pretrained=True, **SIZES), models[PUBLISHED])
    assert capsys.readouterr().err == ""
    assert hub.log() == [("GET", f"/files/{FILE}.zip", 200)]
    assert list(contents(tmp_path / "torch")) == [f"hub/checkpoints/{FILE}"]


def test_the_authors_file_is_asked_for_by_its_tag(
    url: str, hub: Hub, models: list[nn.Module], capsys: pytest.CaptureFixture[str]
) -> None:
    model = timm.create_model("vovnet39.in1k", pretrained=True, **SIZES)
    assert same(model, models[AUTHORS])
    assert model.pretrained_cfg["tag"] == "in1k"
    told = capsys.readouterr().err
    assert all(part in told for part in (AUTHORS_FILE, "SHA-256", "no licence that we know of"))
    assert hub.log() == [("GET", f"/files/{AUTHORS_FILE}", 200)]


def test_the_result_computes_what_the_publishers_does(url: str, models: list[nn.Module]) -> None:
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(load().eval()(image), models[PUBLISHED](image))
        features = load(features_only=True, out_indices=[4]).eval()(image)
        assert torch.equal(features[0], models[PUBLISHED].forward_features(image))


def test_without_pretrained_nobody_is_asked(url: str, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAMESPACE_VARIABLE, "not a name/at all")
    timm.create_model("vovnet39", **SIZES)
    timm.create_model("vovnet39", pretrained=False, features_only=True, **SIZES)
    assert hub.log() == []


OTHERS = ("vovnet39.in1k", "vovnet convert", "VOVNET_HUB_NAMESPACE", "ese_vovnet39b")
"""What an error names beside the source that does not answer."""


@pytest.mark.parametrize("status", [403, 404, 503])
def test_a_dead_link_names_the_other_sources(url: str, hub: Hub, tmp_path: Path, status: int) -> None:
    hub.fail("files", times=ALWAYS, status=status)
    refused(load, url, str(status), str(tmp_path / "torch" / "hub" / "checkpoints" / FILE), *OTHERS)
    assert asked(hub) == {f"/files/{FILE}.zip"}
    refused(lambda: timm.create_model("vovnet39.in1k", pretrained=True, **SIZES), AUTHORS_FILE, "vovnet39.osmr_in1k")


def test_a_backbone_names_them_too(url: str, hub: Hub) -> None:
    hub.down()
    refused(lambda: fpn_backbone("vovnet39", pretrained=True), url, *OTHERS)


@pytest.mark.parametrize("kind", ["two members", "upwards", "a bomb", "nested", "the first half"])
def test_an_archive_of_something_else_is_refused(
    url: str, hub: Hub, models: list[nn.Module], tmp_path: Path, kind: str
) -> None:
    hub.put_file(f"{FILE}.zip", hostile_archives(FILE, osmr(models[PUBLISHED]))[kind])
    refused(load, url, *OTHERS)
    assert contents(tmp_path / "torch") == {}


def test_another_checksum_is_refused_before_the_file_is_read(url: str, hub: Hub, tmp_path: Path) -> None:
    hub.put_file(f"{FILE}.zip", zipped([(FILE, malicious(tmp_path / "ran"))]))
    refused(load, url, "SHA-1", *OTHERS)
    assert not (tmp_path / "ran").exists()
    assert contents(tmp_path / "torch") == {}


# A namespace.


def test_a_namespace_takes_the_publishers_place(
    url: str,
    namespace: str,
    hub: Hub,
    models: list[nn.Module],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = load()  # set after the import
    assert same(model, models[HUB])
    assert model.pretrained_cfg["hf_hub_id"] == REPOSITORY
    assert not model.pretrained_cfg["url"]
    assert capsys.readouterr().err.count(REPOSITORY) == 1
    assert same(load(features_only=True), models[HUB])
    assert not [path for path in asked(hub) if path.startswith("/files/")]
    assert {path for path in asked(hub) if "pytorch_model" in path} == set()
    monkeypatch.setenv(NAMESPACE_VARIABLE, "")  # as good as none
    assert same(load(), models[PUBLISHED])
    monkeypatch.delenv(NAMESPACE_VARIABLE)
    assert same(load(), models[PUBLISHED])
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
    refused(load, REPOSITORY, *OTHERS)
    assert asked(hub)
    assert not [path for path in asked(hub) if path.startswith("/files/")]


def test_a_namespace_with_a_pickle_in_the_weights_place(
    url: str, hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.create(REPOSITORY, {"pytorch_model.bin": malicious(tmp_path / "ran")})
    monkeypatch.setenv(NAMESPACE_VARIABLE, "org")
    refused(load, REPOSITORY)
    assert not (tmp_path / "ran").exists()
    assert not [path for path in asked(hub) if path.startswith("/files/")]


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
    (tmp_path / "osmr.pth").write_bytes(osmr(models[LOCAL]))
    commit = hub.create("me/mine", files)
    hub.commit("me/mine", {"model.safetensors": b"damaged later"})
    hub.create("me/whole", files)

    def by_name(name: str) -> Callable[..., nn.Module]:
        return lambda **options: timm.create_model(name, pretrained=True, **options)

    def by_overlay(**overlay: str) -> Callable[..., nn.Module]:
        return lambda **options: load(pretrained_cfg_overlay=overlay, **options)

    return {
        "a published file": by_overlay(file=str(tmp_path / "theirs.pth")),
        "a file of pytorchcv": by_overlay(file=str(tmp_path / "osmr.pth")),
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
    "a file of pytorchcv",
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


@pytest.mark.parametrize("where", ["publisher", "namespace", *SOURCES])
def test_other_classes_and_grey_images(
    url: str,
    hub: Hub,
    models: list[nn.Module],
    sources: dict[str, Callable[..., nn.Module]],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    expected = models[PUBLISHED if where == "publisher" else HUB if where == "namespace" else LOCAL].state_dict()
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
    for source in SOURCES[:5]:
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
        hub.put_file(AUTHORS_FILE, content)
        message = refused(lambda: timm.create_model("vovnet39.in1k", pretrained=True, **SIZES), AUTHORS_FILE)
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


@pytest.mark.parametrize("name", ["vovnet39.in1k", "vovnet39.osmr_in1k"])
def test_a_damaged_file_in_the_cache_is_named_with_what_to_do(
    url: str, models: list[nn.Module], tmp_path: Path, name: str
) -> None:
    def again() -> nn.Module:
        return timm.create_model(name, pretrained=True, **SIZES)

    again()
    path = tmp_path / "torch" / "hub" / "checkpoints" / (AUTHORS_FILE if name == "vovnet39.in1k" else FILE)
    path.write_bytes(path.read_bytes()[:5000])
    refused(again, str(path), "remove")
    path.unlink()
    assert same(again(), models[AUTHORS if name == "vovnet39.in1k" else PUBLISHED])


def test_a_published_archive_is_a_file_too(url: str, hub: Hub, models: list[nn.Module], tmp_path: Path) -> None:
    archive = tmp_path / f"{FILE}.zip"
    archive.write_bytes(zipped([(FILE, osmr(models[PUBLISHED]))]))
    hub.down()
    assert same(load(pretrained_cfg_overlay={"file": str(archive)}), models[PUBLISHED])
    other = tmp_path / "mine.pth.zip"
    other.write_bytes(archive.read_bytes())
    refused(lambda: load(pretrained_cfg_overlay={"file": str(other)}), str(other))


def test_an_archive_that_only_has_the_authors_name_is_not_their_file(
    url: str, models: list[nn.Module], tmp_path: Path
) -> None:
    """It would be loaded for vovnet39.in1k from then on, and by the next archive of this name."""
    archive = tmp_path / f"{AUTHORS_FILE}.zip"
    archive.write_bytes(zipped([(AUTHORS_FILE, published(models[LOCAL]))]))
    refused(lambda: load(pretrained_cfg_overlay={"file": str(archive)}), str(archive), "name the .pth file in it")
    refused(lambda: fpn_backbone("vovnet39", backbone_args={**SIZES, "checkpoint_path": str(archive)}), str(archive))
    assert same(timm.create_model("vovnet39.in1k", pretrained=True, **SIZES), models[AUTHORS])
    refused(lambda: load(pretrained_cfg_overlay={"file": str(archive)}), str(archive))


@pytest.mark.parametrize("name", ["no-such-file.pth", "."])
def test_a_file_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    refused(lambda: load(pretrained_cfg_overlay={"file": str(tmp_path / name)}), str(tmp_path / name))


def test_a_folder_with_a_damaged_config(models: list[nn.Module], tmp_path: Path) -> None:
    """timm reads it; what it raises is its own, but it raises."""
    exported(models[LOCAL], tmp_path / "folder")
    (tmp_path / "folder" / "config.json").write_text(json.dumps({"architecture": "vovnet93"}))
    with pytest.raises((RuntimeError, ValueError, KeyError)):
        timm.create_model(f"local-dir:{tmp_path / 'folder'}", pretrained=True)
