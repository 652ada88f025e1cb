"""What a classifier sees in images: the likeliest classes, with their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from vovnet.errors import InputError


class ClassScore(TypedDict):
    """One class of one image: its name, its index and its probability (0 to 1)."""

    label: str
    index: int
    score: float


def best_classes(probabilities: NDArray[np.float32], names: Sequence[str], top: int = 5) -> list[ClassScore]:
    """Return the most probable classes, the most probable first.

    Args:
        probabilities: (classes,).
        names: a name for each class.
        top: the number of classes to return, at most all.
    """
    order = np.argsort(-probabilities, kind="stable")[:top].tolist()
    return [{"label": names[index], "index": index, "score": float(probabilities[index])} for index in order]


def classified_files(
    paths: Sequence[Path], classify: Callable[[Path], list[ClassScore]]
) -> Iterator[tuple[Path, list[ClassScore]]]:
    """Yield the classes of each image file.

    Args:
        paths: the files.
        classify: returns the classes of one of them.

    Raises:
        InputError: some files cannot be read. It is raised after the others, and names them all.
    """
    failed = []
    for path in paths:
        try:
            yield path, classify(path)
        except InputError as error:
            failed.append(str(error))
    if failed:
        raise InputError(f"{len(failed)} of {len(paths)} images were not classified: {'; '.join(failed)}")
