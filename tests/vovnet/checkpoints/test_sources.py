"""The table of published ImageNet weights, against pytorchcv's own list and against the networks."""

import pytest
import timm
from pytorchcv.models.common.model_store import get_model_metainfo_dict, imgclsmob_repo_url

import vovnet  # noqa: F401  (registers the models)
from vovnet.checkpoints.download import _MARGIN
from vovnet.checkpoints.sources import (
    IMAGENET_SOURCES,
    LICENCE_NOTICES,
    Source,
    other_sources,
    source_named,
    source_of_checksum,
    source_of_file,
)

OSMR = {"vovnet27_slim": "vovnet27s", "vovnet39": "vovnet39", "vovnet57": "vovnet57"}


@pytest.mark.parametrize("network", OSMR)
def test_addresses_checksums_and_errors_are_those_that_pytorchcv_lists(network: str) -> None:
    theirs = OSMR[network]
    _, error, sha1, tag = get_model_metainfo_dict()[theirs]
    source = source_named(f"{network}.osmr_in1k")
    assert source is not None
    assert source.sha1 == sha1
    assert source.url == f"{imgclsmob_repo_url}/releases/download/{tag}/{theirs}-{error}-{sha1[:8]}.pth.zip"
    assert source.file == f"{theirs}-{error}-{sha1[:8]}.pth"
    assert source.top5_error == int(error) / 100
    assert source.license == "mit"


@pytest.mark.parametrize("source", IMAGENET_SOURCES, ids=lambda source: source.name)
def test_a_source_describes_its_network(source: Source) -> None:
    assert source.license in LICENCE_NOTICES
    state = timm.create_model(source.network, device="meta").state_dict()
    size = sum(value.numel() * value.element_size() for value in state.values())
    assert source.tensor_bytes in (size, None)
    assert len(state) * 1000 < _MARGIN  # so much and more is left for each tensor's name and place in the file
    cfg = timm.get_pretrained_cfg(source.name)
    assert (cfg.url, cfg.license, cfg.origin_url) == (source.url, source.license, source.origin)
    assert source.error_text in cfg.description


@pytest.mark.parametrize("source", IMAGENET_SOURCES, ids=lambda source: source.name)
def test_a_source_is_found_by_its_file_and_checksum(source: Source) -> None:
    assert source_of_file(source.file) == source_of_file(f"{source.file}.zip") == source
    assert source.sha1 is None or source_of_checksum(source.sha1) == source
    assert source_of_file("other.pth") is source_named("vovnet39") is source_of_checksum("0" * 40) is None


@pytest.mark.parametrize("source", IMAGENET_SOURCES, ids=lambda source: source.name)
@pytest.mark.parametrize("on_the_hub", [False, True])
def test_the_other_sources_are_named_with_commands_that_exist(source: Source, on_the_hub: bool) -> None:
    text = other_sources(source.name, on_the_hub=on_the_hub)
    assert ("VOVNET_HUB_NAMESPACE=ORG" in text) != ("unset VOVNET_HUB_NAMESPACE" in text) == on_the_hub
    for other in IMAGENET_SOURCES:
        is_other = other.network == source.network and other != source
        assert (f"'{other.name}'" in text) == (f"backbone={other.name})" in text) == is_other
    (hosted,) = (name for name in timm.list_pretrained("ese_vovnet*") if name in text)
    assert timm.get_pretrained_cfg(hosted).hf_hub_id.startswith("timm/")
