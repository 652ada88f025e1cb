"""Compare an exported classifier, in its own runtime, with the model that it was made of."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from vovnet.classification import classify, evaluation_config
from vovnet.errors import InputError
from vovnet.export.checking import NOT_KEPT, CheckOptions, told_unmeasured
from vovnet.export.metadata import Precision
from vovnet.export.runtime import open_exported
from vovnet.images.folder import list_images
from vovnet.images.reading import read_image

LARGEST_DIFFERENCE = 1e-3
"""Of a probability of a file of precision fp32: see what `EvaluationTransform` says of tall images and OpenVINO."""


@dataclass(frozen=True)
class ClassifierParity:
    """What a classifier and its file said of the same images.

    Attributes:
        file: the exported file.
        precision: the file's.
        images: number of images.
        difference: largest difference of a probability.
        changed: number of images whose most probable class is another one.
    """

    file: Path
    precision: Precision
    images: int
    difference: float
    changed: int

    def table(self) -> str:
        """Return the comparison as text."""
        exact = self.precision == "fp32"
        rows = [
            ("", self.file.name, "largest" if exact else ""),
            ("images", str(self.images), ""),
            ("largest difference of a probability", f"{self.difference:.2g}", f"{LARGEST_DIFFERENCE:g}"),
            ("images with another best class", str(self.changed), "0"),
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        return "\n".join(
            f"{name.ljust(widths[0])}  {value.rjust(widths[1])}  {bound if exact else ''}".rstrip()
            for name, value, bound in rows
        )

    def require(self, max_drop: float) -> None:
        """Check that the file may be used: fp32 must agree with the model, others may differ in some images.

        Args:
            max_drop: largest part of the images, in 0..1, in which a file of another precision may see another class.

        Raises:
            InputError: it differs by more.
        """
        if self.precision == "fp32" and self.difference > LARGEST_DIFFERENCE:
            raise InputError(
                f"{self.file.name}: probabilities differ by {self.difference:.2g}, expected {LARGEST_DIFFERENCE:g} at "
                f"most; {NOT_KEPT}"
            )
        if self.precision != "fp32" and self.changed > max_drop * self.images:
            raise InputError(
                f"{self.file.name}: {self.changed} of {self.images} images have another best class, more than "
                f"--max-drop {max_drop:g} of them; {NOT_KEPT}"
            )


def classifier_parity(
    model: nn.Module, file: str | os.PathLike[str], images: str | os.PathLike[str]
) -> ClassifierParity:
    """Run an exported classifier and the model itself on a folder of images, and compare their probabilities.

    Raises:
        InputError: there are no images, one of them cannot be read or has another size than the file takes, or the
            file cannot be opened.
    """
    opened = open_exported(file)
    channels = int(evaluation_config(model)["input_size"][0])
    paths = list_images(Path(images))
    difference, changed = 0.0, 0
    for path in paths:
        image = read_image(path, channels)
        pixels = np.asarray(image)
        given = pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
        found: NDArray[np.float32] = next(iter(opened.run_each([given])))["probabilities"]
        expected = np.zeros_like(found)
        for one in classify(model, [image], top=len(found))[0]:
            expected[one["index"]] = one["score"]
        difference = max(difference, float(np.abs(found - expected).max()))
        changed += int(found.argmax() != expected.argmax())
    return ClassifierParity(Path(file), opened.metadata.precision, len(paths), difference, changed)


def check_classifier(
    model: nn.Module, file: str | os.PathLike[str], options: CheckOptions, report: Callable[[str], object]
) -> None:
    """Compare an exported classifier with the model as the options say, and report the table.

    Raises:
        InputError: as :func:`classifier_parity`; or the file differs by more than it may.
    """
    if options.images is None:
        told_unmeasured(open_exported(file).metadata.precision, report)
        return
    parity = classifier_parity(model, file, options.images)
    report(parity.table())
    if not options.force:
        parity.require(options.max_drop)
