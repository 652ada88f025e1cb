"""Where the ImageNet weights of this package's networks are published: addresses, checksums, licences and errors.

Importing this opens no connection. :mod:`vovnet.checkpoints.download` fetches the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

_IMAGENET_TERMS = "trained on ImageNet (https://www.image-net.org/download.php)"

LICENCE_NOTICES = {
    "unknown": (
        f"its authors state no licence that we know of; it was {_IMAGENET_TERMS}, a detector on COCO, too "
        "(https://cocodataset.org/#termsofuse), whose terms are for you to judge"
    ),
    "cc-by-nc-4.0": (
        "its licence is CC BY-NC 4.0, which forbids commercial use (https://creativecommons.org/licenses/by-nc/4.0/)"
    ),
    "mit": (
        f"its licence is MIT, Copyright (c) 2018-2026 Oleg Sémery (https://github.com/osmr/imgclsmob); it was "
        f"{_IMAGENET_TERMS}, whose terms are for you to judge"
    ),
    "bsd-3-clause": (
        "torchvision's licence is BSD-3-Clause, for its code, and it states none for the weights; they were trained on "
        "COCO (https://cocodataset.org/#termsofuse), whose terms are for you to judge"
    ),
    "not-stated": "it states no licence; ask where it comes from",
}
"""Licence of published weights → what its users should know. ``unknown`` are the files of VoVNet.pytorch and
maskrcnn-benchmark(-vovnet), ``cc-by-nc-4.0`` those of vovnet-detectron2, ``mit`` those of pytorchcv,
``bsd-3-clause`` torchvision's detectors; ``not-stated`` is a file whose publisher nothing tells: its names are timm's
or torchvision's and it has no ``config.json``, or they are pytorchcv's or those of torchvision's detectors and its
checksum is unknown, or another project's heads are in it."""

WITHOUT_LICENCE = frozenset({"unknown", "not-stated"})
"""The keys of :data:`LICENCE_NOTICES` that are no licence."""


def hub_licence(licence: str) -> str:
    """Return the Hub's identifier for a licence of weights: ``other`` if none is stated."""
    return "other" if licence in WITHOUT_LICENCE else licence


def licence_notice(licence: str) -> str:
    """Return what the users of weights with a licence should know: a key of :data:`LICENCE_NOTICES`, or another one."""
    return LICENCE_NOTICES.get(licence, f"its config.json states the licence {licence}")


@dataclass(frozen=True)
class Source:
    """A published file with the ImageNet weights of a network. Its errors were not measured here."""

    name: str
    """timm's name of the network with the tag of the weights, such as ``vovnet39.osmr_in1k``."""
    url: str
    """The address of the ``.pth`` file, or of a zip archive that holds it alone."""
    publisher: str
    """Who trained the network, in text."""
    origin: str
    """The address of the publisher's project."""
    license: str
    """A key of :data:`LICENCE_NOTICES`."""
    top1_error: float
    """Top-1 error on ImageNet-1k's validation images at 224×224, in percent, as the publisher states it."""
    top5_error: float | None = None
    """Top-5 error, in percent; None if the publisher states none."""
    sha1: str | None = None
    """SHA-1 of the ``.pth`` file; None if the publisher states none."""
    tensor_bytes: int | None = None
    """Bytes of the network's tensors, which the ``.pth`` file exceeds by its names alone. Its own size is unknown."""

    @property
    def network(self) -> str:
        """timm's name of the network, without the tag."""
        return self.name.partition(".")[0]

    @property
    def file(self) -> str:
        """The name of the ``.pth`` file."""
        return PurePosixPath(urlsplit(self.url).path).name.removesuffix(".zip")

    @property
    def error_text(self) -> str:
        """The published errors as text, such as ``top-1 error 21.71 %, top-5 error 5.64 %``."""
        top5 = "" if self.top5_error is None else f", top-5 error {self.top5_error:.2f} %"
        return f"top-1 error {self.top1_error:.2f} %{top5}"


def _pytorchcv(network: str, tag: str, file: str, top1: float, top5: float, sha1: str, tensor_bytes: int) -> Source:
    return Source(
        f"{network}.osmr_in1k",
        f"https://github.com/osmr/imgclsmob/releases/download/{tag}/{file}.pth.zip",
        "pytorchcv",
        "https://github.com/osmr/imgclsmob",
        "mit",
        top1,
        top5,
        sha1,
        tensor_bytes,
    )


def _authors(network: str, path: str, top1: float) -> Source:
    return Source(
        f"{network}.in1k",
        f"https://dl.dropbox.com/s/{path}?dl=1",
        "the authors",
        "https://github.com/stigma0617/VoVNet.pytorch",
        "unknown",
        top1,
    )


IMAGENET_SOURCES = (
    # The first of a network is what pretrained=True takes. Checksums and errors are those that pytorchcv 0.0.74 lists.
    _pytorchcv(
        "vovnet27_slim",
        "v0.0.551",
        "vovnet27s-0997-b7a5bf67",
        29.78,
        9.97,
        "b7a5bf677bd3431bbed44b439fde7a01d699ace1",
        14_129_528,
    ),
    _pytorchcv(
        "vovnet39",
        "v0.0.493",
        "vovnet39-0564-63bfa613",
        21.71,
        5.64,
        "63bfa613870b37bd4fb5b71412e7875392aa4f66",
        90_483_160,
    ),
    _pytorchcv(
        "vovnet57",
        "v0.0.505",
        "vovnet57-0518-c080e471",
        20.33,
        5.18,
        "c080e47169a176043f298b1e909ddd8776d5aa76",
        146_688_104,
    ),
    _authors("vovnet39", "1lnzsgnixd8gjra/vovnet39_torchvision.pth", 23.23),
    _authors("vovnet57", "6bfu9gstbwfw31m/vovnet57_torchvision.pth", 22.27),
)
"""Every published file with ImageNet weights of VoVNet-27-slim, -39 and -57."""


def source_named(name: str) -> Source | None:
    """Return the source with a name such as ``vovnet39.osmr_in1k``, or None."""
    return next((source for source in IMAGENET_SOURCES if source.name == name), None)


def source_of_file(file: str) -> Source | None:
    """Return the source whose ``.pth`` file or archive has a name, or None."""
    return next((source for source in IMAGENET_SOURCES if source.file == file.removesuffix(".zip")), None)


def source_of_checksum(sha1: str) -> Source | None:
    """Return the source whose ``.pth`` file has a SHA-1, or None."""
    return next((source for source in IMAGENET_SOURCES if source.sha1 == sha1), None)


def other_sources(name: str, *, on_the_hub: bool = False) -> str:
    """Return the other sources of a network's weights, with the commands for them, for one that does not answer.

    Args:
        name: The name of the source.
        on_the_hub: The copy in a namespace on the Hub does not answer, and not the publisher's file.
    """
    network = name.partition(".")[0]
    ways = [
        f"take {source.name} of {source.publisher} (timm.create_model('{source.name}', pretrained=True), --weights "
        f"{source.name} or model.backbone={source.name})"
        for source in IMAGENET_SOURCES
        if source.network == network and source.name != name
    ]
    ways.append(
        "convert a file (`vovnet convert FILE FOLDER`, then timm.create_model('local-dir:FOLDER', pretrained=True), "
        "--weights FOLDER or init=FOLDER)"
    )
    if on_the_hub:
        ways.insert(0, "unset VOVNET_HUB_NAMESPACE to load the publisher's file")
    else:
        ways.append(f"name a namespace on the Hub that has {name} (VOVNET_HUB_NAMESPACE=ORG)")
    hosted = _TIMM_NETWORKS[network]
    ways.append(f"or take a VoVNetV2 that timm hosts (timm.create_model('{hosted}', pretrained=True))")
    return ", ".join(ways)


_TIMM_NETWORKS = {
    "vovnet27_slim": "ese_vovnet19b_dw.ra_in1k",
    "vovnet39": "ese_vovnet39b.ra_in1k",
    "vovnet57": "ese_vovnet57b.ra4_e3600_r256_in1k",
}
"""The network of this package → the nearest one whose weights timm hosts on the Hub."""
