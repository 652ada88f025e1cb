"""The images that a visitor can try without having one at hand."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vovnet.detection.data.synthetic import CATEGORIES, generate_shapes
from vovnet.errors import InputError
from vovnet.folders.temporary import scratch_folder
from vovnet.images.reading import image_suffixes
from vovnet.results.writing import FileDetector

MOST = 6
_SEED = 7
"""Other shapes than those of the quickstart."""


def example_files(folder: Path | None, detectors: Mapping[str, FileDetector]) -> list[tuple[str, bytes]]:
    """Return the name and the content of each example.

    Args:
        folder: of image files, of which the first :data:`MOST` are taken. None draws shapes, as ``vovnet quickstart``
            does, if a detector knows their categories.
        detectors: by name.

    Raises:
        InputError: there is no such folder, or no image is in it.
    """
    if folder is None:
        return _shapes() if any(_knows_shapes(one) for one in detectors.values()) else []
    if not folder.is_dir():
        raise InputError(f"--examples '{folder}': expected a folder of images")
    suffixes = image_suffixes()
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in suffixes and path.is_file())
    if not files:
        raise InputError(f"--examples '{folder}': no image is in it")
    return [(path.name, path.read_bytes()) for path in files[:MOST]]


def _knows_shapes(detector: FileDetector) -> bool:
    names = {str(one["name"]) for one in detector.categories or ()}
    return {one["name"] for one in CATEGORIES} <= names


def _shapes() -> list[tuple[str, bytes]]:
    with scratch_folder() as folder:
        generate_shapes(folder, train=1, val=3, size=(128, 128), max_shapes=3, seed=_SEED)
        files = sorted((folder / "val").glob("*.png"))
        return [(f"shapes-{number}.png", path.read_bytes()) for number, path in enumerate(files, 1)]
