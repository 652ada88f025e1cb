"""Published classifiers and backbones: infer a file's network, and map its keys to timm's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
from torch import nn

from vovnet.checkpoints.archives import sha1_of_checkpoint
from vovnet.checkpoints.shapes import Shapes, closest, compare_shapes, published_resnet_keys, shapes_of
from vovnet.checkpoints.sources import Source, source_of_checksum
from vovnet.detection.checkpoints.network_facts import NetworkFacts, NetworkInput
from vovnet.errors import InputError
from vovnet.hub.input_folding import DETECTRON2, IMAGENET, INPUTS
from vovnet.hub.parts import BODY, CLASSIFIER, Part, foreign, network_part
from vovnet.vovnet import VoVNet, published_keys, pytorchcv_keys
from vovnet.vovnet import model_cfgs as vovnets
from vovnet.vovnet_v2 import published_v2_keys

NETWORKS = {
    "vovnet27_slim": "VoVNet-27-slim",
    "vovnet39": "VoVNet-39",
    "vovnet57": "VoVNet-57",
    "ese_vovnet19b_slim_dw": "VoVNetV2-19-slim-dw",
    "ese_vovnet19b_dw": "VoVNetV2-19-dw",
    "ese_vovnet19b_slim": "VoVNetV2-19-slim",
    "ese_vovnet19b": "VoVNetV2-19",
    "ese_vovnet39b_all": "VoVNetV2-39",
    "ese_vovnet57b_all": "VoVNetV2-57",
    "ese_vovnet99b_all": "VoVNetV2-99",
    "ese_vovnet39b": "VoVNetV2-39 as timm has it",
    "ese_vovnet57b": "VoVNetV2-57 as timm has it",
    "ese_vovnet99b": "VoVNetV2-99 as timm has it",
    "resnet50": "ResNet-50",
    "resnet101": "ResNet-101",
}
"""timm's name of each network with published weights → the name in text."""

AUTHORS, PYTORCHCV, TIMM = "the authors", "pytorchcv", "timm"
"""Whose names the tensors of a file have. ``the authors`` are those of VoVNet.pytorch, maskrcnn-benchmark(-vovnet) and
vovnet-detectron2. torchvision's ResNets have timm's names."""

COUNTER = ".num_batches_tracked"
"""End of the key of a batch norm's counter."""

_MOST_CLASSES = 1_000_000

NORM_EPS = 1e-5
"""The epsilon of the batch norms of every network here, in timm and where it was trained. A ResNet under torchvision's
frozen norms may have had none, and is refused."""

_BGR = (
    "the keys do not tell which input the weights expect; the published detection backbones take BGR pixels in 0..255 "
    "minus (102.9801, 115.9465, 122.7717), as pretrained_cfg says"
)
STRIDE_NOTE = (
    "the stride is in the 1x1 convolutions of the network that these weights are of, and in the 3x3 ones of timm's: "
    "timm.create_model alone computes something else with them; they are for recipes with conventions: legacy, which "
    "move the stride"
)
_FOREIGN_V2 = (
    "the network's names are vovnet-detectron2's, and what is beside it is another project's: if the weights are "
    "vovnet-detectron2's, their licence is CC BY-NC 4.0; find out where the file comes from"
)
_EVERY_BLOCK = "the attention is in every block, unlike in timm's {}; `import vovnet` registers this network with timm"


@dataclass(frozen=True)
class PublishedNetwork:
    """A network that was identified by the keys and shapes of a file."""

    title: str
    """The name in text, such as ``VoVNet-39``."""
    name: str
    """timm's name; a model of that name with ``num_classes`` takes the weights."""
    num_classes: int
    """0 if the file has no classifier."""
    names: dict[str, str]
    """The file's key → timm's key, for every tensor of the network in the file."""
    ignored: dict[str, str]
    """Keys that are left out on purpose, with the reason."""
    notes: tuple[str, ...]
    """Notes for the users of the weights."""
    licence: str
    """A key of :data:`vovnet.checkpoints.sources.LICENCE_NOTICES`."""
    named_by: str = AUTHORS
    """Whose names the file has: :data:`AUTHORS` or :data:`PYTORCHCV`."""
    source: Source | None = None
    """The published file that this one is, if its checksum tells."""
    input: NetworkInput = field(default_factory=lambda: IMAGENET)
    """The images that the network takes."""
    input_notes: tuple[str, ...] = ()
    """Notes for the users about the input and the strides."""
    stride_in_1x1: bool | None = None
    """Where a ResNet has its strides; None for other networks."""
    norm_eps: float | None = None
    """The epsilon that a detector's frozen norms must have or make up for; None takes a detector's own, as the
    published detection backbones do."""
    cfg: Mapping[str, Any] = field(default_factory=dict)
    """Entries of timm's ``pretrained_cfg`` that the file's own ``config.json`` has."""

    @property
    def facts(self) -> NetworkFacts:
        """Return what ``config.json`` says beside timm's keys: nothing of a network that takes RGB in 0..1."""
        if self.input.channel_order == "rgb":
            return NetworkFacts()
        return NetworkFacts(self.input, self.norm_eps, self.stride_in_1x1)


def infer_network(found: Shapes, part: Part | None = None) -> PublishedNetwork:
    """Infer the network in a file and map each of its keys once, or ignore it on purpose.

    The classifier and any of the batch counters may be absent (detectron2's frozen norms have no counters).

    Args:
        found: Names and shapes, without ``module.``. Of a whole detectron2 detector, the backbone is taken.
        part: ``backbone`` takes the network of any file that holds one, without its classifier.

    Raises:
        InputError: The file holds none of the published networks, or one whose norms it does not tell; or a key is
            missing, left over or of another shape, and the message lists all of these.
    """
    prefix, inside, ignored = network_part(found, part)
    body = {key: shape for key, shape in inside.items() if key not in CLASSIFIER and not key.endswith(COUNTER)}
    candidates = {(form, name): _body_shapes(form, name) for form in FORMS for name in FORMS[form].networks}
    form, name = closest(candidates, body)
    if not candidates[form, name].keys() & body.keys():
        raise InputError(
            f"holds none of the published forms (its keys begin with {', '.join(list(found)[:3])}); expected a "
            "classifier of VoVNet.pytorch, pytorchcv or timm, a backbone or detector of maskrcnn-benchmark, or one of "
            "vovnet-detectron2"
        )
    num_classes = _classes(inside)
    model = empty_network(name, num_classes)
    if differences := compare_shapes(_expected_shapes(form, model, inside), inside):
        more = not (differences.missing or differences.reshaped or part)
        hint = "; give --part backbone to leave out what is no part of the network" if more else ""
        raise InputError(f"is nearest to {NETWORKS[name]}, but does not fit it ({differences}){hint}")
    names = {f"{prefix}{theirs}": ours for theirs, ours in FORMS[form].keys(model).items() if theirs in inside}
    licence, notes = _particulars(form, name, ignored)
    network = PublishedNetwork(NETWORKS[name], name, num_classes, names, ignored, notes, licence, form)
    if name.startswith("resnet"):
        _check_epsilon(form, prefix, found)
        network = replace(network, stride_in_1x1=form == AUTHORS)
    if form == AUTHORS and name.startswith("ese_"):
        network = replace(network, input=DETECTRON2, norm_eps=NORM_EPS)
    elif form == AUTHORS and (network.stride_in_1x1 or not num_classes):
        stride = (STRIDE_NOTE,) if network.stride_in_1x1 else ()
        network = replace(network, input=INPUTS["bgr255"], input_notes=(*stride, _BGR))
    return network if part is None else without_classifier(network)


def _check_epsilon(form: str, prefix: str, found: Shapes) -> None:
    """Refuse a ResNet that torchvision's detectors had under frozen norms, which have no counters in a file.

    torchvision's own files of 2019 were trained without an epsilon, and its detectors use 1e-5 unless it loads these
    files (torchvision/models/detection/_utils.py, overwrite_eps). Nothing in a file tells which one it was.

    Raises:
        InputError: The file holds such a ResNet.
    """
    if form == TIMM and prefix == BODY and not any(key.startswith(prefix) and key.endswith(COUNTER) for key in found):
        raise InputError(
            "holds the ResNet of a torchvision detector with frozen norms, and does not tell their epsilon: 0 in "
            "torchvision's first COCO files, 1e-5 otherwise; train from torchvision's file by its name "
            "(init=torchvision:fasterrcnn_resnet50_fpn), or convert a _v2 file or ImageNet weights"
        )


def without_classifier(network: PublishedNetwork) -> PublishedNetwork:
    """Return a network whose classifier's keys are left out."""
    left_out = {theirs for theirs, ours in network.names.items() if ours in CLASSIFIER}
    return replace(
        network,
        num_classes=0,
        names={theirs: ours for theirs, ours in network.names.items() if theirs not in left_out},
        ignored={**network.ignored, **dict.fromkeys(sorted(left_out), "a backbone has no classifier")},
    )


def identified(network: PublishedNetwork, path: Path) -> PublishedNetwork:
    """Return the network with the published file that its checksum tells, and notes that say so.

    Args:
        network: The contents of the file.
        path: The file, or the zip archive that holds it.
    """
    if network.named_by != PYTORCHCV:
        return network
    sha1 = sha1_of_checkpoint(path)
    source = source_of_checksum(sha1)
    if source is not None and source.network == network.name:
        note = f"this is pytorchcv's {source.file} ({source.name}): on ImageNet-1k {source.error_text}, as it states"
    else:
        source = None
        note = (
            f"the names are pytorchcv's, but no file that it lists has this SHA-1 ({sha1}): find out where the file "
            "comes from, and whether pytorchcv's licence is that of these weights"
        )
    licence = network.licence if source is None else source.license
    return replace(network, notes=(note, *network.notes), source=source, licence=licence)


@functools.cache
def _body_shapes(form: str, name: str) -> Shapes:
    """Return the shapes of a network by published key, without classifier and batch counters."""
    return _expected_shapes(form, empty_network(name, 0), ())


def empty_network(name: str, num_classes: int) -> nn.Module:
    """Build a timm model on the meta device: its tensors have shapes and no memory."""
    return timm.create_model(name, num_classes=num_classes, device="meta")


def network_keys(model: nn.Module) -> dict[str, str]:
    """Return the authors' key → timm's key, for every tensor of one of :data:`NETWORKS`."""
    if isinstance(model, VoVNet):
        return published_keys(model)
    return published_v2_keys(model) if hasattr(model, "stages") else published_resnet_keys(model)


@dataclass(frozen=True)
class Form:
    """The names that one publisher gives to the tensors of some networks."""

    networks: tuple[str, ...]
    """Keys of :data:`NETWORKS`."""
    keys: Callable[[Any], dict[str, str]]
    """A model → the publisher's key → timm's key, for every tensor."""


def _own_keys(model: nn.Module) -> dict[str, str]:
    return {key: key for key in model.state_dict()}


FORMS = {
    AUTHORS: Form(tuple(NETWORKS), network_keys),
    PYTORCHCV: Form(tuple(vovnets), pytorchcv_keys),
    TIMM: Form(tuple(NETWORKS), _own_keys),
}
"""The forms in which weights of networks are published; the first one wins if several fit equally."""


def _expected_shapes(form: str, model: nn.Module, present: Iterable[str]) -> dict[str, tuple[int, ...]]:
    """Return the model's shapes by the form's keys; of the batch counters only those that are present in the file."""
    ours = shapes_of(model.state_dict())
    return {
        theirs: ours[key]
        for theirs, key in FORMS[form].keys(model).items()
        if key in ours and (theirs in present or not theirs.endswith(COUNTER))
    }


def _classes(inside: Shapes) -> int:
    """Return the number of classes, or 0 without a classifier; a weight or a bias is enough."""
    for key in sorted(CLASSIFIER):
        shape = inside.get(key)
        if shape is not None:
            if not shape or not 1 <= shape[0] <= _MOST_CLASSES:
                raise InputError(f"{key} is {shape}, expected the classes first")
            return shape[0]
    return 0


def _particulars(form: str, name: str, beside: Iterable[str]) -> tuple[str, tuple[str, ...]]:
    """Return the licence of the weights, as far as names tell it, and the notes for their users.

    Args:
        form: A key of :data:`FORMS`.
        name: A key of :data:`NETWORKS`.
        beside: The file's keys that are not of the network.
    """
    if form != AUTHORS:  # anybody uses these names: the checksum or a config.json may tell more
        return "not-stated", ()
    if not name.startswith("ese_"):
        return "unknown", ()
    every_block = (_EVERY_BLOCK.format(name.removesuffix("_all")),) if name.endswith("_all") else ()
    return ("not-stated", (_FOREIGN_V2, *every_block)) if foreign(beside) else ("cc-by-nc-4.0", every_block)
