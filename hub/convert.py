"""Published checkpoints → detector folders and timm's folders.

Keys and shapes alone identify the contents of a file. Each key is mapped once or ignored on purpose, with the reason;
any other key is an error that lists it. Values do not change, except that other floating-point types become float32.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import timm

from vovnet.checkpoints.pickled import to_float32
from vovnet.checkpoints.places import is_torchvision
from vovnet.checkpoints.shapes import shapes_of
from vovnet.checkpoints.sources import hub_licence, licence_notice
from vovnet.detection.checkpoints.network_facts import NetworkInput
from vovnet.detection.checkpoints.torchvision_detectors import torchvision_detector
from vovnet.detection.checkpoints.torchvision_file import TorchvisionFile
from vovnet.detection.config.loading import load_recipe, recipe_names
from vovnet.detection.legacy.keys import PublishedDetector, check_cell_anchors
from vovnet.errors import InputError, did_you_mean
from vovnet.files import flush_folder, flush_to_disk
from vovnet.folders.claim import claimed_folder
from vovnet.folders.home import expand_home
from vovnet.folders.temporary import scratch_folder
from vovnet.hub.classifier_folder import write_network
from vovnet.hub.classifiers import PublishedNetwork, identified, infer_network, without_classifier
from vovnet.hub.detectors import Expected, holds_detector, is_expected, licence_of, recognised, write_detector
from vovnet.hub.input_folding import named_input
from vovnet.hub.manifest import PUBLISHED_FILES, SUMS_FILE, PublishedFile, sha256_of
from vovnet.hub.network_inputs import described_by, with_input
from vovnet.hub.parts import BOTTOM_UP, Part, check_part, grouped
from vovnet.hub.release import Description, StoredAs, check_architecture, describe
from vovnet.hub.weights_file import WeightsFile, read_weights_file

Published = PublishedDetector | TorchvisionFile | PublishedNetwork

_MOST_LISTED = 10
"""Ignored keys that are listed one by one; more of them are counted by their beginnings."""


@dataclass(frozen=True)
class Conversion:
    """The result of :func:`convert_checkpoint`; ``str()`` gives the text for the user."""

    title: str
    """Contents of the file, such as ``Mask R-CNN V-39-FPN, 80 classes``."""
    name: str
    """The shipped recipe that trains the detector, ``torchvision:NAME``, or timm's name of the network."""
    folder: Path
    notes: tuple[str, ...] = ()
    """Notes for the user: the input that the weights expect, types that were converted, the licence."""
    ignored: Mapping[str, str] = field(default_factory=dict)
    """Keys of the file that were left out on purpose, with the reason."""

    def __str__(self) -> str:
        lines = [f"{self.folder}: {self.title} ({self.name})", *(f"note: {note}" for note in self.notes)]
        for why in dict.fromkeys(self.ignored.values()):
            keys = [key for key, reason in self.ignored.items() if reason == why]
            lines += [f"ignored: {key} ({why})" for key in (keys if len(keys) <= _MOST_LISTED else grouped(keys))]
        return "\n".join(lines)


def convert_checkpoint(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    overwrite: bool = False,
    expect: str | None = None,
    architecture: StoredAs = "timm",
    input: str | None = None,
    part: str | None = None,
) -> Conversion:
    """Read a published checkpoint and write a folder that loads here.

    Keys and shapes alone identify the contents, and a checksum those of torchvision's files that have the same ones. A
    Faster or Mask R-CNN of maskrcnn-benchmark or a detector of torchvision with a feature pyramid becomes a detector
    folder (:func:`vovnet.hub.load_detector`). A classifier of VoVNet.pytorch or pytorchcv, a detection backbone, a
    ResNet in maskrcnn-benchmark's names or a VoVNetV2 of vovnet-detectron2 becomes a timm folder
    (``timm.create_model("local-dir:OUT", pretrained=True)`` after ``import vovnet``). The file is a state dict, or
    ``{"model": …}`` with an optimizer and the like beside it, with ``module.`` before all keys or none.

    Besides ``config.json`` and ``model.safetensors`` the folder gets a model card, ``manifest.json`` (the file's
    SHA-256, and outputs for :func:`vovnet.hub.verify`) and ``SHA256SUMS``.

    Args:
        path: The ``.pth`` file, a zip archive that holds it alone, a ``.safetensors`` file, or a folder or Hub
            repository in timm's form. Only tensors and plain values are read, so nothing in it can run.
        out: The folder for the result; created if it does not exist.
        overwrite: Replace the files of a folder that is not empty.
        expect: Name of a recipe or timm model, or ``torchvision:NAME``; another content of the file is an error.
        architecture: How ``config.json`` names a VoVNet: ``timm`` (timm's ``vovnet39a`` with arguments, which also
            loads without this package) or ``vovnet`` (its name in this package). The outputs are equal.
        input: ``bgr255`` folds the input of ``conventions: legacy`` into the first convolution and its norm, and leaves
            the classifier out: a start for the recipes with these conventions (docs/how-to/reproduce.md).
        part: ``backbone`` takes the network of a file that holds more, without its classifier, and lists the rest.

    Returns:
        The contents of the file, notes, and the keys that were left out on purpose.

    Raises:
        InputError: The file cannot be read, would run code, holds keys or shapes that do not fit (all are listed),
            values that are not finite, other anchors than the published ones, or something else than ``expect``; or
            ``out`` cannot be written to. Nothing is written then.
    """
    path = expand_home(path)
    check_architecture(architecture)
    wanted = None if expect is None else _expected(expect)
    target, part = None if input is None else named_input(input), check_part(part)
    file = read_weights_file(path)
    sha256 = sha256_of(file.path)
    try:
        published = _infer(file, part, target, sha256, wanted)
        if expect is not None and wanted is not None and not _is(published, wanted):
            raise InputError(_is_something_else(published, expect))
        check_cell_anchors(file.tensors)
        values, notes = to_float32({theirs: file.tensors[theirs] for theirs in published.names})
        tensors = {published.names[theirs]: value for theirs, value in values.items()}
        if target is not None and isinstance(published, PublishedNetwork):
            published, tensors = with_input(published, tensors, target)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    if file.beside:
        notes.append(f"not read, beside the weights: {', '.join(file.beside)}")
    licence = published.licence if isinstance(published, PublishedNetwork) else licence_of(published)
    source = PublishedFile(file.name, sha256, _full_title(published), published.name, licence)
    with claimed_folder(out, overwrite=overwrite) as folder, scratch_folder(folder) as staged:
        if isinstance(published, PublishedNetwork):
            write_network(staged, published, tensors, source.file)
            notes = [*published.notes, *published.input_notes, *notes]
        else:
            notes = [*write_detector(staged, published, tensors), *notes]
        describe(staged, staged, source, Description(license=hub_licence(licence), architecture=architecture))
        _move_files(staged, folder)
    notes.append(f"{source.file}, SHA-256 {source.sha256}: {licence_notice(licence)}")
    return Conversion(source.title, source.name, folder, tuple(notes), published.ignored)


def _move_files(staged: Path, folder: Path) -> None:
    """Replace the published files of a folder; the checksums come last, so that an interruption is noticed."""
    (folder / SUMS_FILE).unlink(missing_ok=True)
    for name in PUBLISHED_FILES:
        flush_to_disk(staged / name)
    for name in PUBLISHED_FILES:
        os.replace(staged / name, folder / name)
    flush_folder(folder)


def _infer(
    file: WeightsFile, part: Part | None, target: NetworkInput | None, sha256: str, wanted: Expected | None
) -> Published:
    shapes = shapes_of(file.tensors)
    detectron2 = any(key.startswith(BOTTOM_UP) for key in shapes)
    if part is None and not detectron2 and holds_detector([*shapes]):
        if target is not None:
            raise InputError("holds a detector, and --input is for a network: give --part backbone, too")
        return recognised(shapes, sha256, wanted)
    network = identified(infer_network(shapes, part), file.path)
    # Nobody shall classify RGB images with a network that takes others, so that its classifier is left out.
    return described_by(network if target is None else without_classifier(network), file)


def _is_something_else(published: Published, expect: str) -> str:
    if isinstance(published, PublishedDetector):
        return f"{published.is_not(expect)}; nothing was written"
    hint = ""
    if published.name == f"{expect}_all":
        hint = f": timm's {expect} has the attention in the last block of a stage alone"
    return f"is {_full_title(published)} ({published.name}), not {expect}{hint}; nothing was written"


def _expected(expect: str) -> Expected:
    """The model of a recipe, a detector of torchvision, or timm's name of a network."""
    if is_torchvision(expect):
        return torchvision_detector(expect)
    if expect in recipe_names() or expect.endswith((".yaml", ".yml")):
        return load_recipe(expect).model
    architecture = expect.partition(".")[0]  # without a tag such as .in1k
    if timm.is_model(architecture):
        return architecture
    known = [*recipe_names(), *timm.list_models("*vovnet*"), "resnet50", "resnet101"]
    hint = did_you_mean(expect, known, most=3)
    raise InputError(f"--expect '{expect}' is neither a recipe nor a timm model; {hint}".rstrip("; "))


def _is(published: Published, wanted: Expected) -> bool:
    return published.name == wanted if isinstance(published, PublishedNetwork) else is_expected(published, wanted)


def _full_title(published: Published) -> str:
    if not isinstance(published, PublishedNetwork):
        return published.full_title
    classes = published.num_classes
    return f"{published.title}, {f'{classes} classes' if classes else 'a backbone without a classifier'}"
