"""Check that a published folder or repository is complete, unchanged, and computes what its publisher recorded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vovnet.checkpoints.places import model_folder
from vovnet.hub.manifest import PUBLISHED_FILES, SUMMED_FILES, check_sums, read_manifest
from vovnet.hub.reference_outputs import compare_outputs
from vovnet.hub.release import load_folder


@dataclass(frozen=True)
class Verification:
    """The result of :func:`verify`; ``str()`` gives the text for the user."""

    name: str
    folder: Path
    outputs: int
    """Number of recorded outputs that were compared."""
    difference: float
    """Largest difference, relative to the largest magnitude of its output."""

    def __str__(self) -> str:
        return (
            f"{self.name}: {len(SUMMED_FILES)} files have their checksums, the weights load, and {self.outputs} outputs"
            f" equal the recorded ones (largest relative difference {self.difference:.1g})"
        )


def verify(name_or_folder: str | os.PathLike[str], revision: str | None = None) -> Verification:
    """Check that a published folder is complete and that the model computes the outputs that its publisher recorded.

    The files must have the checksums in ``SHA256SUMS`` and load. The model then runs on a synthetic image, and its
    outputs must equal those in ``manifest.json`` within a tolerance.

    Args:
        name_or_folder: A local folder, or else ``ORG/NAME`` on the Hub.
        revision: Branch, tag or commit on the Hub.

    Raises:
        InputError: Something is missing, damaged or different; the message names all of it.
    """
    name, folder = os.fspath(name_or_folder), model_folder(name_or_folder, PUBLISHED_FILES, revision)
    check_sums(folder)
    manifest = read_manifest(folder)
    model = load_folder(folder)
    difference = compare_outputs(model, manifest.outputs, name)
    return Verification(name, folder, len(manifest.outputs), difference)
