"""Whether a published folder or repository is what its publisher put there, and computes here what it did there."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vovnet.checkpoints.hub import hub_files
from vovnet.errors import InputError
from vovnet.hub.manifest import PUBLISHED_FILES, SUMMED_FILES, check_sums, read_manifest
from vovnet.hub.reference_outputs import compare_outputs
from vovnet.hub.release import load_folder


@dataclass(frozen=True)
class Verification:
    """What was found to hold; ``str()`` of it tells the user."""

    name: str
    folder: Path
    outputs: int
    """How many recorded outputs were compared."""
    difference: float
    """The largest one, relative to the largest magnitude of its output."""

    def __str__(self) -> str:
        return (
            f"{self.name}: {len(SUMMED_FILES)} files have their checksums, the weights load, and {self.outputs} outputs"
            f" equal the recorded ones (largest relative difference {self.difference:.1g})"
        )


def verify_folder(name_or_folder: str | os.PathLike[str], revision: str | None = None) -> Verification:
    """The body of :func:`vovnet.hub.verify`, which documents it."""
    name, folder = os.fspath(name_or_folder), Path(name_or_folder)
    if not folder.exists():
        folder = hub_files(name, PUBLISHED_FILES, revision)
    elif revision is not None:
        raise InputError(f"revision '{revision}' was given, but '{folder}' is a local path; revisions are the Hub's")
    elif not folder.is_dir():
        raise InputError(f"'{folder}' is a file; expected the folder that holds {', '.join(PUBLISHED_FILES)}")
    check_sums(folder)
    manifest = read_manifest(folder)
    model = load_folder(folder)
    difference = compare_outputs(model, manifest.outputs, name)
    return Verification(name, folder, len(manifest.outputs), difference)
