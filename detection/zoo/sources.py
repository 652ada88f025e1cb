"""Every published source of weights that this package knows, in one table.

The facts stand elsewhere, each once: pytorchcv's and the authors' files in :mod:`vovnet.checkpoints.sources`, the
authors' detectors in :mod:`vovnet.detection.zoo.published`, the others in timm's and torchvision's own tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import timm
from torchvision.models import get_model_weights
from torchvision.models._api import WeightsEnum

from vovnet.checkpoints.download import checkpoints_folder
from vovnet.checkpoints.places import TORCHVISION_PREFIX
from vovnet.checkpoints.pretrained import hub_namespace
from vovnet.checkpoints.sources import IMAGENET_SOURCES
from vovnet.checkpoints.sources import Source as ImageNetFile
from vovnet.detection.checkpoints.torchvision_detectors import LICENCE, NETWORKS, metric_name
from vovnet.detection.zoo.published import PUBLISHED_BACKBONES, PUBLISHED_ROWS, PublishedRow
from vovnet.errors import InputError, did_you_mean
from vovnet.files import WEIGHTS_FILE

_IMAGENET = "ImageNet-1k"
_MINIVAL = "COCO 2014 minival"
_BY_NAME = ("vovnet predict IMAGE --weights NAME", 'import timm, vovnet; timm.create_model("NAME", pretrained=True)')


@dataclass(frozen=True)
class Group:
    """Sources that one publisher offers, and that load in the same way."""

    title: str
    load: tuple[str, ...]
    """Commands and calls that load one of them, with ``NAME`` or ``NETWORK`` for what differs."""
    verified: str
    """The properties that this package's tests check, without the publisher's file."""
    unverified: str
    """The properties that nobody has checked here, because the publisher's file is needed for it."""


@dataclass(frozen=True)
class Source:
    """A file or repository with published weights. Its numbers are the publisher's and were not measured here."""

    name: str
    """The name that loads it, such as ``vovnet39.osmr_in1k`` or ``torchvision:maskrcnn_resnet50_fpn``; for a file that
    is only converted, the file's name."""
    network: str
    """timm's or torchvision's name of the network, without a tag."""
    group: Group
    publisher: str
    license: str
    """A short identifier such as ``mit``; ``unknown`` if the publisher states none for the weights."""
    terms: str = ""
    """The terms of the weights as text, if the identifier does not say all of them."""
    url: str | None = None
    """The address of the file, or of a zip archive that holds it; None for a repository, or if nothing is published."""
    repository: str | None = None
    """The repository on the Hub, whose ``model.safetensors`` is loaded."""
    data: str = _IMAGENET
    """The data that the numbers were measured on."""
    published: Mapping[str, float] = field(default_factory=dict)
    """The published numbers in percent, by the metric's name."""
    checksum: str | None = None
    """Algorithm and digits, or the first digits, of the file's checksum."""
    size: int | None = None
    """The size of the weights in bytes, to 0.1 %; None if nobody states it."""
    download: range | None = None
    """The sizes in bytes that the download may have; None if that is not known."""
    aliases: tuple[str, ...] = ()
    """Other names that load it, such as ``torchvision:maskrcnn_resnet50_fpn.COCO_V1``."""

    @property
    def known_as(self) -> tuple[str, ...]:
        """The names that mean this source, and that of its network, which may mean others, too."""
        return (self.name, self.network, *self.aliases)

    @property
    def place(self) -> str:
        """Where the weights are: an address, or a repository on the Hub; empty if no file is published."""
        return self.url or (f"Hub repository {self.repository}" if self.repository else "")

    @property
    def file(self) -> str:
        """The name of the file at the address; empty for a repository."""
        return PurePosixPath(urlsplit(self.url or "").path).name

    @property
    def load(self) -> list[str]:
        """Commands and calls that load it; empty if no file is published."""
        ways = self.group.load if self.place else ()
        return [way.replace("NAME", self.name).replace("NETWORK", self.network) for way in ways]

    @property
    def licence_text(self) -> str:
        """The licence for people to read."""
        return self.terms or ("none stated" if self.license == "unknown" else self.license)

    @property
    def published_text(self) -> str:
        """The published numbers and who states them."""
        if not self.published:
            return f"no numbers in the tables of {self.publisher}"
        return f"{self.numbers} on {self.data}, as stated by {self.publisher}"

    @property
    def numbers(self) -> str:
        """The published numbers as text, with the digits that their publisher gives."""
        digits = {name: 2 if name.endswith("error") else 1 for name in self.published}
        return ", ".join(f"{name} {value:.{digits[name]}f} %" for name, value in self.published.items())

    def cached(self) -> Path | None:
        """Return the file in torch's or the Hub's cache, or None. The network is not asked."""
        if self.url is not None:
            path = checkpoints_folder() / self.file.removesuffix(".zip")
            return path if path.is_file() else None
        if self.repository is None:
            return None
        from huggingface_hub import constants, try_to_load_from_cache

        found = try_to_load_from_cache(self.repository, WEIGHTS_FILE, cache_dir=constants.HF_HUB_CACHE)
        return Path(found) if isinstance(found, str) else None


def all_sources() -> tuple[Source, ...]:
    """Return every source: those of a Hub namespace in the environment first, then the published ones.

    Raises:
        InputError: The name of the namespace (``VOVNET_HUB_NAMESPACE``) is malformed.
    """
    namespace = hub_namespace()
    return (*_of_namespace(namespace), *published_sources()) if namespace else published_sources()


def select(known: Sequence[Source], names: Iterable[str]) -> list[Source]:
    """Return the sources with one of the names or networks, in the table's order; all of them if no name is given.

    Args:
        known: The table.
        names: Names as in the table, names of networks, other names that load a source, or patterns such as
            ``*vovnet39*``, in any case.

    Raises:
        InputError: No source has one of the names.
    """
    chosen: set[str] = set()
    for name in (patterns := list(names)):
        pattern = name.lower()
        found = {one.name for one in known if any(fnmatchcase(text.lower(), pattern) for text in one.known_as)}
        if not found:
            every = {text for one in known for text in one.known_as}
            hint = did_you_mean(name, sorted(every), "`vovnet weights` lists all", most=3)
            raise InputError(f"no source of weights is called {name!r}: {hint}")
        chosen |= found
    return [one for one in known if not patterns or one.name in chosen]


@cache
def published_sources() -> tuple[Source, ...]:
    """Return every source that needs no setting of this machine."""
    import vovnet.detection.zoo.torchvision_api  # noqa: F401 (registers the names of the authors' detectors)

    imagenet = sorted(IMAGENET_SOURCES, key=lambda one: one.publisher != "pytorchcv")
    classifiers = (*map(_imagenet, imagenet), *_timm(timm.list_pretrained("ese_vovnet*"), _TIMM))
    starts = (*_timm(_RESNETS, _RESNET_STARTS), *_backbones())
    return (*classifiers, *starts, *map(_detector, PUBLISHED_ROWS), *_torchvision())


_PYTORCHCV = Group(
    "ImageNet weights from pytorchcv, which pretrained=True loads",
    _BY_NAME,
    "on random weights, the networks compute what pytorchcv's own compute; archives are opened safely",
    "the files, and their errors on ImageNet",
)
_AUTHORS = Group(
    "ImageNet weights from the authors",
    _BY_NAME,
    "the names of the tensors, on files made here",
    "the files; others report since December 2025 that the addresses answer 403 (forbidden)",
)
_TIMM = Group("ImageNet weights of VoVNetV2 from timm", _BY_NAME, "recipes build detectors over them", "the files")
_RESNETS = ("resnet50.tv_in1k", "resnet101.tv_in1k")
_RESNET_STARTS = Group(
    "ImageNet weights of ResNets from timm, starts for conventions: legacy",
    ("vovnet convert timm/NAME OUT --input bgr255", *_BY_NAME),
    "on random weights, detectors with conventions: legacy train from the converted network",
    "the files",
)
_BACKBONES = Group(
    "Detection backbones from the authors, the starts of their V detectors",
    ("vovnet convert NAME OUT",),
    "the names of the tensors, on files made here",
    "the files; the addresses are on the same host as the authors' ImageNet weights",
)
_DETECTORS = Group(
    "COCO detectors from the authors",
    ('import torchvision, vovnet.detection; torchvision.models.get_model("NETWORK", weights="COCO_V1")',),
    "on random weights, the detectors compute what maskrcnn-benchmark's reference computes",
    "the files, and their AP on COCO; the addresses are on the same host as the authors' ImageNet weights",
)
_TORCHVISION = Group(
    "COCO detectors from torchvision",
    ("vovnet predict IMAGE --weights NAME", "vovnet train RECIPE init=NAME --output RUN"),
    "on random weights, the detectors compute what torchvision's own compute, to the last bit",
    "the files, and their AP on COCO",
)


def _imagenet(file: ImageNetFile) -> Source:
    size = file.tensor_bytes
    return Source(
        file.name,
        file.network,
        _PYTORCHCV if file.publisher == "pytorchcv" else _AUTHORS,
        file.publisher,
        file.license,
        url=file.url,
        published=_errors(file),
        checksum=None if file.sha1 is None else f"SHA-1 {file.sha1}",
        size=size,
        # Nobody states the archive's size. The assumption is that it is at least half of its file's.
        download=None if size is None else range(size // 2, size + 2**20),
    )


def _errors(file: ImageNetFile) -> dict[str, float]:
    return {"top-1 error": file.top1_error} | ({} if file.top5_error is None else {"top-5 error": file.top5_error})


def _timm(names: Iterable[str], group: Group) -> Iterator[Source]:
    for name in names:
        cfg = timm.get_pretrained_cfg(name)
        if cfg is not None and cfg.hf_hub_id:
            # timm's table leaves the name to be appended where a repository is called like its weights.
            repository = f"{cfg.hf_hub_id}{name}" if cfg.hf_hub_id.endswith("/") else cfg.hf_hub_id
            yield Source(name, name.partition(".")[0], group, "timm", cfg.license or "unknown", repository=repository)


def _backbones() -> Iterator[Source]:
    for network, url in PUBLISHED_BACKBONES.items():
        file = PurePosixPath(urlsplit(url).path).name
        yield Source(file, network, _BACKBONES, "the authors", "unknown", url=url)


def _detector(row: PublishedRow) -> Source:
    kind, family, depth = row.recipe.replace("_rcnn", "rcnn").split("_")[:3]
    network = f"{kind}_{'vovnet' if family == 'V' else 'legacy_resnet'}{depth}_fpn"
    published = {"box AP": row.box[0]} | ({} if row.mask is None else {"mask AP": row.mask[0]})
    return Source(
        f"{network}.COCO_V1",
        network,
        _DETECTORS,
        "the authors",
        "unknown",
        url=row.url,
        data=_MINIVAL,
        published=published,
    )


def _torchvision() -> Iterator[Source]:
    for network in NETWORKS:
        offered = get_model_weights(network)
        for weights in sorted(offered, key=lambda one: one is not offered["DEFAULT"]):
            yield _of_torchvision(network, weights, offered)


def _of_torchvision(network: str, weights: WeightsEnum, offered: type[WeightsEnum]) -> Source:
    members = [name for name, member in offered.__members__.items() if member is weights]
    (data, metrics), *_ = weights.meta["_metrics"].items()
    mebibytes: float = weights.meta["_file_size"]  # to three digits behind the point
    digits = PurePosixPath(urlsplit(weights.url).path).stem.rpartition("-")[2]
    return Source(
        f"{TORCHVISION_PREFIX}{network}" + ("" if "DEFAULT" in members else f".{weights.name}"),
        network,
        _TORCHVISION,
        "torchvision",
        "unknown",
        LICENCE,
        url=weights.url,
        data=data.replace("-", " "),
        published={metric_name(kind): value for kind, value in metrics.items()},
        checksum=f"SHA-256 {digits}…",
        size=round(mebibytes * 2**20),
        download=range(int((mebibytes - 0.001) * 2**20), int((mebibytes + 0.001) * 2**20) + 1),
        aliases=tuple(f"{prefix}{network}.{name}" for prefix in (TORCHVISION_PREFIX, "") for name in members),
    )


def _of_namespace(namespace: str) -> Iterator[Source]:
    group = Group(
        f"Your Hub namespace (VOVNET_HUB_NAMESPACE={namespace}), which comes before the publishers' files",
        _BY_NAME,
        "nothing",
        "everything: who fills the namespace answers for it",
    )
    for file in IMAGENET_SOURCES:
        repository = f"{namespace}/{file.name}"
        yield Source(f"hf-hub:{repository}", file.network, group, namespace, "unknown", repository=repository)
