"""The table of sources holds every published file, with the facts of those who publish it."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import timm
import torchvision
import typer.main
from hostile import refused
from local_hub import Hub
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_V2_Weights, MaskRCNN_ResNet50_FPN_Weights

from vovnet.checkpoints.hub import hub_files
from vovnet.checkpoints.sources import IMAGENET_SOURCES
from vovnet.cli import app
from vovnet.detection.checkpoints.torchvision_detectors import NETWORKS, torchvision_detector
from vovnet.detection.zoo.listing import as_markdown
from vovnet.detection.zoo.published import PUBLISHED_BACKBONES, PUBLISHED_ROWS
from vovnet.detection.zoo.sources import Source, all_sources, published_sources, select
from vovnet.detection.zoo.weights import PublishedWeights

REPRODUCE = Path(__file__).resolve().parents[3] / "docs" / "how-to" / "reproduce.md"
SHA1 = {  # as pytorchcv 0.0.74 lists them
    "vovnet27_slim": "b7a5bf677bd3431bbed44b439fde7a01d699ace1",
    "vovnet39": "63bfa613870b37bd4fb5b71412e7875392aa4f66",
    "vovnet57": "c080e47169a176043f298b1e909ddd8776d5aa76",
}


FIRST_KEYPOINTS = "torchvision:keypointrcnn_resnet50_fpn.COCO_LEGACY"
"""The only weights of torchvision that are not those of a plain name."""


def named(name: str) -> Source:
    (one,) = select(published_sources(), [name])
    return one


def test_every_published_file_is_there_once() -> None:
    names = [source.name for source in published_sources()]
    assert len(set(names)) == len(names)
    assert {source.name for source in IMAGENET_SOURCES} <= set(names)
    assert {f"torchvision:{name}" for name in NETWORKS} <= set(names)
    assert set(timm.list_pretrained("ese_vovnet*")) <= set(names)
    assert sum(name.endswith(".COCO_V1") for name in names) == len(PUBLISHED_ROWS) == 8
    starts = 2 + len(PUBLISHED_BACKBONES)
    hosted = sum(len([*torchvision.models.get_model_weights(name)]) for name in NETWORKS)
    assert len(names) == len(IMAGENET_SOURCES) + hosted + len(timm.list_pretrained("ese_vovnet*")) + starts + 8


def test_every_start_of_the_docs_is_there() -> None:
    """Detectron's pickles are not: they are never opened here, and a script on that page converts them."""
    section = REPRODUCE.read_text(encoding="utf-8").partition("### Initial weights")[2].partition("###")[0]
    starts = set(re.findall(r"vovnet convert (\S+)", section)) - {"R-50.pth", "R-101.pth"}
    assert len(starts) == 6
    known = {name for source in published_sources() for name in (source.file, source.repository)}
    assert starts <= known


def test_starts_are_converted_by_the_command_that_is_shown() -> None:
    assert named("resnet50.tv_in1k").load[0] == "vovnet convert timm/resnet50.tv_in1k OUT --input bgr255"
    assert named("resnet101.tv_in1k").license == timm.get_pretrained_cfg("resnet101.tv_in1k").license
    backbone = named("vovnet57_statedict_norm.pth")
    assert (backbone.network, backbone.file, backbone.license) == ("vovnet57", backbone.name, "unknown")
    assert backbone.load == ["vovnet convert vovnet57_statedict_norm.pth OUT"]


@pytest.mark.parametrize("network", SHA1)
def test_pytorchcvs_files(network: str) -> None:
    source = named(f"{network}.osmr_in1k")
    assert source.checksum == f"SHA-1 {SHA1[network]}"
    assert source.license == "mit"
    assert source.publisher == "pytorchcv"
    state = timm.create_model(network).state_dict()
    assert source.size == sum(value.nbytes for value in state.values())
    assert source.network in (network, source.name.partition(".")[0])


def test_detectors_have_torchvisions_names_and_the_authors_numbers() -> None:
    detectors = [source for source in published_sources() if source.name.endswith(".COCO_V1")]
    for source, row in zip(detectors, PUBLISHED_ROWS, strict=True):
        enum = torchvision.models.get_model_weights(source.network)
        assert issubclass(enum, PublishedWeights)
        assert source.url == row.url
        assert list(source.published.values()) == [aps[0] for aps in (row.box, row.mask) if aps]
        if row.url is None:
            assert not enum.__members__
            assert source.load == []
            assert source.place == ""
        else:
            assert enum["COCO_V1"].meta["recipe"] == row.recipe
            assert source.load[0].endswith(f'.get_model("{source.network}", weights="COCO_V1")')


def test_torchvisions_detectors_have_its_own_numbers() -> None:
    mask, v2 = named("torchvision:maskrcnn_resnet50_fpn"), named("torchvision:fasterrcnn_resnet50_fpn_v2")
    assert mask.url == MaskRCNN_ResNet50_FPN_Weights.COCO_V1.url
    assert mask.published == {"box AP": 37.9, "mask AP": 34.6}
    assert v2.published == {
        "box AP": FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1.meta["_metrics"]["COCO-val2017"]["box_map"]
    }
    assert v2.data == "COCO val2017"
    assert v2.checksum == "SHA-256 dd69338a…"
    assert v2.size == pytest.approx(167.104 * 2**20, abs=1)
    assert v2.size in (v2.download or ())
    for network in NETWORKS:
        assert (
            torchvision_detector(named(f"torchvision:{network}").name).weights.url
            == select(published_sources(), [network])[0].url
        )


def test_torchvisions_licence_is_that_of_its_code_and_no_claim_about_its_weights(hub: Hub) -> None:
    for source in (named(f"torchvision:{network}") for network in NETWORKS):
        assert source.license == "unknown"
        for text in (str(torchvision_detector(source.name)), source.licence_text, as_markdown([source])):
            assert "torchvision's code" in text
            assert "COCO, whose terms" in text


@pytest.mark.parametrize("network", NETWORKS)
def test_every_name_that_loads_a_detector_of_torchvision_finds_it(network: str) -> None:
    members = torchvision.models.get_model_weights(network).__members__
    assert {"COCO_V1", "DEFAULT"} <= members.keys()
    for name in (f"torchvision:{network}", *(f"torchvision:{network}.{member}" for member in members)):
        printed = str(torchvision_detector(name)).partition(" ")[0]
        default = members.get(name.rpartition(".")[2], members["DEFAULT"]) is members["DEFAULT"]
        expected = f"torchvision:{network}" if default else name
        for given in (name, name.removeprefix("torchvision:"), printed):
            assert select(published_sources(), [given])[0].name == expected


def test_timms_networks_are_on_the_hub() -> None:
    source = named("ese_vovnet39b.ra_in1k")
    assert source.repository == "timm/ese_vovnet39b.ra_in1k"
    assert source.url is None
    assert source.license == "apache-2.0"
    assert source.published == {}


def test_a_namespace_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOVNET_HUB_NAMESPACE", "org")
    first = all_sources()[: len(IMAGENET_SOURCES)]
    assert {source.repository for source in first} == {f"org/{source.name}" for source in IMAGENET_SOURCES}
    assert all_sources()[len(first) :] == published_sources()
    monkeypatch.setenv("VOVNET_HUB_NAMESPACE", "not a name/at all")
    refused(all_sources, "VOVNET_HUB_NAMESPACE")
    monkeypatch.delenv("VOVNET_HUB_NAMESPACE")
    assert all_sources() == published_sources()


def test_the_cache_is_looked_at(hub: Hub, tmp_path: Path) -> None:
    archive, detector = named("vovnet39.osmr_in1k"), named("torchvision:maskrcnn_resnet50_fpn")
    ours = named("ese_vovnet39b.ra_in1k")
    hub.create(str(ours.repository), {"config.json": b"{}", "model.safetensors": b"weights"})
    for source in (archive, detector, ours, named("maskrcnn_vovnet57_fpn")):
        assert source.cached() is None
    assert hub.log() == []
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    for name in ("vovnet39-0564-63bfa613.pth", "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"):
        (folder / name).write_bytes(b"weights")
    hub_files(str(ours.repository), ["model.safetensors"])
    for source in (archive, detector, ours):
        path = source.cached()
        assert path is not None
        assert path.read_bytes() == b"weights"


def test_sources_are_chosen_by_name_network_or_pattern() -> None:
    def chosen(*names: str) -> list[str]:
        return [source.name for source in select(published_sources(), names)]

    assert chosen("vovnet39") == ["vovnet39.osmr_in1k", "vovnet39.in1k", "vovnet39_statedict_norm.pth"]
    assert chosen("VoVNet39.in1k") == ["vovnet39.in1k"]
    assert chosen("maskrcnn_resnet50_fpn") == ["torchvision:maskrcnn_resnet50_fpn"]
    assert set(chosen("torchvision:*")) == {f"torchvision:{name}" for name in NETWORKS} | {FIRST_KEYPOINTS}
    assert chosen("vovnet57.in1k", "vovnet39.in1k") == ["vovnet39.in1k", "vovnet57.in1k"]
    assert len(chosen()) == len(published_sources())
    refused(lambda: chosen("vovnet39", "vovnet38"), "'vovnet38'", "'vovnet39'")


def test_lines_of_python_run_on_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[tuple[str, dict[str, object]]] = []
    for owner, function in ((timm, "create_model"), (torchvision.models, "get_model")):
        monkeypatch.setattr(owner, function, lambda name, **arguments: called.append((name, arguments)))
    lines = [line for source in published_sources() for line in source.load if "(" in line]
    for line in lines:
        exec(line, {})
    assert len(called) == len(lines) > 0
    for name, arguments in called:
        if "weights" in arguments:
            assert str(arguments["weights"]) in torchvision.models.get_model_weights(name).__members__
        else:
            assert timm.is_model(name.partition(".")[0])


def test_lines_of_the_shell_name_every_option_that_the_command_needs() -> None:
    group: Any = typer.main.get_command(app)
    lines = {line for source in published_sources() for line in source.load if line.startswith("vovnet ")}
    for _, name, *arguments in map(shlex.split, lines):
        group.commands[name].make_context(name, arguments)
    assert {line.split()[1] for line in lines} == {"predict", "train", "convert"}


def test_texts_say_who_states_what() -> None:
    for source in published_sources():
        assert source.publisher in source.published_text
        assert re.search(r"\d %", source.published_text) or not source.published
        assert source.group.verified
        assert source.group.unverified
        assert not re.search("NAME|NETWORK", " ".join(source.load))
