"""The stand-in Hub against the real clients: what huggingface_hub and timm do with the Hub, they do with it."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import local_hub
import pytest
import timm
import torch
from huggingface_hub import HfApi, ModelCard, constants, errors, hf_hub_download, snapshot_download
from local_hub import ALWAYS, Hub
from packaging.version import Version
from support import contents

import vovnet  # noqa: F401  (registers the models)

NAME = "org/model"
WEIGHTS = bytes(range(256)) * 64
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
FILES = {"config.json": b"{}\n", "model.safetensors": WEIGHTS, "some/deep file.txt": b"text"}


def download(filename: str = "model.safetensors", revision: str | None = None) -> bytes:
    return Path(hf_hub_download(NAME, filename, revision=revision)).read_bytes()


def leftovers() -> list[str]:
    """Files of a download that is not whole."""
    cache = Path(constants.HF_HUB_CACHE)
    return [path for path in contents(cache) if path.endswith(".incomplete")] if cache.exists() else []


# The stand-in itself.


def test_nothing_here_knows_the_real_hub(hub: Hub, tmp_path: Path) -> None:
    assert hub.endpoint == constants.ENDPOINT == os.environ["HF_ENDPOINT"]
    assert HfApi().endpoint == hub.endpoint
    for folder in (constants.HF_HUB_CACHE, torch.hub.get_dir()):
        assert Path(folder).is_relative_to(tmp_path)
    assert Path(constants.HF_HOME) != Path.home() / ".cache" / "huggingface"


def test_it_ends_with_the_process_that_started_it() -> None:
    code = "import local_hub, os, signal; hub = local_hub.Hub(); os.kill(os.getpid(), signal.SIGKILL)"
    # The Hub holds the other end of this pipe: the call returns when it has ended too.
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(local_hub.__file__).parent,
        stderr=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL


# Upload.


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "upload"
    for path, content in FILES.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)
    return root


def test_create_upload_and_download(hub: Hub, token: str, folder: Path) -> None:
    api = HfApi()
    assert api.whoami()["name"] == "tester"
    assert api.create_repo(NAME, private=True).repo_id == NAME
    assert hub.is_private(NAME)
    assert api.create_repo(NAME, exist_ok=True).repo_id == NAME
    with pytest.raises(errors.HfHubHTTPError, match="409"):
        api.create_repo(NAME)

    commit = api.upload_folder(repo_id=NAME, folder_path=folder, commit_message="add").oid
    assert hub.files(NAME).keys() - FILES.keys() == {".gitattributes"}  # the Hub's own
    assert {path: hub.files(NAME)[path] for path in FILES} == FILES
    assert hub.head(NAME) == commit

    snapshot = Path(snapshot_download(NAME))
    assert snapshot.name == commit
    assert {path: content for path, content in contents(snapshot).items() if path in FILES} == FILES
    assert api.model_info(NAME).private
    assert set(api.list_repo_files(NAME)) == {".gitattributes", *FILES}


def test_large_files_travel_before_the_commit_and_once(hub: Hub, token: str, folder: Path) -> None:
    api = HfApi()
    api.create_repo(NAME)
    for _ in range(2):
        api.upload_folder(repo_id=NAME, folder_path=folder)
    requests = [(request.method, request.path.removesuffix(SHA256)) for request in hub.log()]
    assert requests.count(("PUT", "/_objects/")) == 1
    assert requests.count(("POST", f"/api/models/{NAME}/commit/main")) == 1  # the second time, nothing had changed
    assert requests.index(("PUT", "/_objects/")) < requests.index(("POST", f"/api/models/{NAME}/commit/main"))


def test_delete_and_commit_on_an_old_parent(hub: Hub, token: str) -> None:
    first = hub.create(NAME, FILES)
    api = HfApi()
    api.delete_file("config.json", NAME)
    api.delete_folder("some", NAME)
    assert hub.files(NAME) == {"model.safetensors": WEIGHTS}
    assert hub.files(NAME, first) == FILES
    with pytest.raises(errors.HfHubHTTPError, match="412"):
        api.upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=NAME, parent_commit=first)


def test_writing_needs_a_token_that_is_known(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.create(NAME, FILES)
    for known in ({}, {"HF_TOKEN": "hf_nobody"}):
        for name, value in known.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(errors.HfHubHTTPError, match="401"):
            HfApi().create_repo("org/other")
        with pytest.raises(errors.HfHubHTTPError, match="401"):
            HfApi().upload_file(path_or_fileobj=b"x", path_in_repo="x", repo_id=NAME)
    assert hub.repositories() == {NAME}
    assert hub.files(NAME) == FILES


@pytest.mark.skipif(
    Version(huggingface_hub.__version__) < Version("2.3"), reason="asks huggingface.co, whatever HF_ENDPOINT says"
)
def test_cards_are_validated(hub: Hub, token: str) -> None:
    hub.create(NAME, {})
    ModelCard("---\nlicense: apache-2.0\n---\n# Title\n").validate()
    with pytest.raises(ValueError, match="license"):
        ModelCard("---\nlicense: Apache License 2.0\n---\n# Title\n").push_to_hub(NAME)
    assert hub.files(NAME) == {}
    with pytest.warns(UserWarning, match="empty or missing"):
        HfApi().upload_file(path_or_fileobj=b"# Title", path_in_repo="README.md", repo_id=NAME)


# timm.


def test_timm_pushes_and_loads_a_model(hub: Hub, token: str) -> None:
    sizes = {"stem_chs": [8, 8, 8], "stage_conv_chs": [8, 8, 8, 8], "stage_out_chs": [8, 8, 8, 8]}
    model = timm.create_model("vovnet27_slim", num_classes=3, **sizes).eval()
    timm.models.push_to_hf_hub(model, NAME, model_config={"num_classes": 3}, model_args=sizes, safe_serialization=True)
    assert hub.files(NAME).keys() == {".gitattributes", "README.md", "config.json", "model.safetensors"}
    assert json.loads(hub.files(NAME)["config.json"])["architecture"] == "vovnet27_slim"

    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    loaded = timm.create_model(f"hf-hub:{NAME}", pretrained=True).eval()
    assert torch.equal(loaded(image), model(image))
    features = timm.create_model(f"hf-hub:{NAME}", pretrained=True, features_only=True).eval()
    assert torch.equal(features(image)[-1], model.forward_features(image))


# Download.


def test_branches_tags_and_commits(hub: Hub, token: str) -> None:
    first = hub.create(NAME, FILES)
    HfApi().create_tag(NAME, tag="v1")
    with pytest.raises(errors.HfHubHTTPError, match="409"):
        HfApi().create_tag(NAME, tag="v1")
    second = hub.commit(NAME, {"config.json": b"new"})
    third = hub.commit(NAME, {"config.json": b"other"}, branch="feature/x")
    assert download("config.json") == download("config.json", second) == b"new"
    assert download("config.json", "v1") == download("config.json", first) == b"{}\n"
    assert download("config.json", "feature/x") == download("config.json", third) == b"other"
    refs = HfApi().list_repo_refs(NAME)
    assert {ref.name: ref.target_commit for ref in refs.tags} == hub.tags(NAME) == {"v1": first}
    assert {ref.name for ref in refs.branches} == {"main", "feature/x"}
    with pytest.raises(errors.RevisionNotFoundError):
        download("config.json", "v2")


def test_what_is_not_there(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.create(NAME, FILES)
    with pytest.raises(errors.RemoteEntryNotFoundError):
        download("other.json")
    for request in (lambda: hf_hub_download("org/other", "x"), lambda: snapshot_download("org/other")):
        with pytest.raises(errors.RepositoryNotFoundError, match="401"):  # who does not say who he is learns nothing
            request()
        with monkeypatch.context() as patch:
            patch.setenv("HF_TOKEN", hub.token)
            with pytest.raises(errors.RepositoryNotFoundError, match="404"):
                request()


def test_private_and_gated_need_a_token(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.create(NAME, FILES, private=True)
    hub.create("org/gated", FILES, gated=True)
    with pytest.raises(errors.RepositoryNotFoundError, match="401"):
        download()
    with pytest.raises(errors.GatedRepoError, match="401"):
        hf_hub_download("org/gated", "config.json")
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert download() == WEIGHTS
    assert Path(hf_hub_download("org/gated", "config.json")).read_bytes() == FILES["config.json"]


def test_checksums_are_what_git_and_lfs_say(hub: Hub) -> None:
    hub.create(NAME, FILES)
    described = {info.path: info for info in HfApi().get_paths_info(NAME, list(FILES))}
    assert described.keys() == FILES.keys()
    assert described["config.json"].blob_id == "0967ef424bce6791893e9a57bb952f80fd536e93"  # git hash-object
    assert described["model.safetensors"].lfs.sha256 == SHA256
    blobs = {Path(hf_hub_download(NAME, path)).resolve().name for path in ("config.json", "model.safetensors")}
    assert blobs == {described["config.json"].blob_id, SHA256}


# Faults.


def test_a_warm_cache_needs_no_network(hub: Hub, offline: Callable[[], None]) -> None:
    hub.create(NAME, FILES)
    snapshot = snapshot_download(NAME)
    hub.down()
    assert download() == WEIGHTS
    assert snapshot_download(NAME) == snapshot
    with pytest.raises(errors.LocalEntryNotFoundError):
        hf_hub_download("org/other", "config.json")
    hub.up()
    before = hub.log()
    offline()
    assert download() == WEIGHTS
    assert snapshot_download(NAME) == snapshot
    with pytest.raises(errors.LocalEntryNotFoundError):
        hf_hub_download("org/other", "config.json")
    assert hub.log() == before


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_few_failures_are_survived(hub: Hub, status: int) -> None:
    hub.create(NAME, FILES)
    hub.fail("resolve/.*safetensors", times=3, status=status, headers={"Retry-After": "0"}, methods=["HEAD"])
    assert download() == WEIGHTS
    assert [request.status for request in hub.log()] == [status] * 3 + [200, 200]


def test_a_rate_limit_on_the_body_is_survived(hub: Hub) -> None:
    hub.create(NAME, FILES)
    hub.fail("resolve", times=2, status=429, headers={"Retry-After": "0"}, methods=["GET"])
    assert download() == WEIGHTS
    assert [request.status for request in hub.log()] == [200, 429, 429, 200]


@pytest.mark.parametrize("status", [429, 503])
def test_lasting_failures_are_told(hub: Hub, status: int) -> None:
    hub.create(NAME, FILES)
    hub.fail("resolve", times=ALWAYS, status=status, headers={"Retry-After": "0"})
    with pytest.raises(errors.LocalEntryNotFoundError) as caught:
        download()
    assert isinstance(caught.value.__cause__, errors.HfHubHTTPError)
    assert caught.value.__cause__.response.status_code == status
    assert {request.status for request in hub.log()} == {status}
    assert leftovers() == []


@pytest.mark.usefixtures("impatient")
def test_a_slow_answer_is_asked_for_again(hub: Hub) -> None:
    hub.create(NAME, FILES)
    hub.slow("resolve", times=2)
    assert download() == WEIGHTS
    assert [request.status for request in hub.log()] == [0, 0, 200, 200]


@pytest.mark.parametrize("fault", ["slow", "drop"])
@pytest.mark.usefixtures("impatient")
def test_a_body_that_does_not_come_is_asked_for_again(hub: Hub, fault: str) -> None:
    hub.create(NAME, FILES)
    getattr(hub, fault)("resolve", methods=["GET"])
    assert download() == WEIGHTS
    assert [(request.method, request.status) for request in hub.log()] == [("HEAD", 200), ("GET", 0), ("GET", 200)]


def test_a_cut_off_body_is_resumed(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # the client keeps whole chunks of what came
    hub.create(NAME, FILES)
    hub.cut("resolve")
    assert download() == WEIGHTS
    assert [request.status for request in hub.log()] == [200, 200, 206]


def test_a_body_that_is_always_cut_off_leaves_nothing(hub: Hub) -> None:
    hub.create(NAME, FILES)
    hub.cut("resolve", times=ALWAYS)
    with pytest.raises(errors.HTTPError):
        download()
    assert leftovers() == []
    with pytest.raises(errors.LocalEntryNotFoundError):
        hf_hub_download(NAME, "model.safetensors", local_files_only=True)


def test_the_client_does_not_notice_a_flipped_bit(hub: Hub) -> None:
    """Which is why what we publish carries checksums."""
    hub.create(NAME, FILES)
    hub.flip("safetensors")
    got = download()
    assert sum((a ^ b).bit_count() for a, b in zip(got, WEIGHTS, strict=True)) == 1


def test_plain_files(hub: Hub, tmp_path: Path) -> None:
    url = hub.put_file("a file.pth", WEIGHTS)
    target = tmp_path / "file"
    torch.hub.download_url_to_file(f"{url}?dl=1", str(target), progress=False)
    assert target.read_bytes() == WEIGHTS
    assert hub.log() == [("GET", "/files/a file.pth", 200)]
