"""What `vovnet export` does with a file before it keeps it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vovnet.errors import InputError
from vovnet.export.metadata import Kind, Precision
from vovnet.images.folder import list_images

NOT_KEPT = "nothing was written, --force writes it anyway"


def told_unmeasured(precision: Precision, report: Callable[[str], object]) -> None:
    """Report that a file was not compared with its model, if its precision makes it differ."""
    if precision != "fp32":
        report(f"accuracy was not measured, and {precision} may cost some; --check IMAGES compares the file")


@dataclass(frozen=True)
class CheckOptions:
    """How a written file is compared with the model.

    Attributes:
        images: a folder of images to run both on; None compares nothing.
        annotations: for a detector: a COCO JSON file, whose AP is computed for both.
        max_drop: largest difference by which the accuracy of a file of another precision than fp32 may be lower, 0..1.
        force: keep a file that differs by more.
    """

    images: Path | None = None
    annotations: Path | None = None
    max_drop: float = 0.01
    force: bool = False

    def validate(self, precision: Precision, kind: Kind) -> None:
        """Check that the options fit one another and the precision; int8 is measured, unless it is forced.

        It also looks for the data, because writing the file may take minutes.

        Raises:
            InputError: an option is missing or has no meaning; or there are no images or annotations.
        """
        if self.annotations is not None and self.images is None:
            raise InputError("--annotations: needs --check IMAGES, the folder of the annotated images")
        if self.annotations is not None and kind == "classifier":
            raise InputError("--annotations: COCO's are for detectors, and this is a classifier; leave them out")
        if self.images is not None:
            list_images(self.images)
        if self.annotations is not None and not self.annotations.is_file():
            raise InputError(f"--annotations {self.annotations}: no such file; expected COCO JSON of the images")
        measured = self.images is not None and (self.annotations is not None or kind == "classifier")
        if precision == "int8" and not measured and not self.force:
            data = "--check IMAGES" if kind == "classifier" else "--check IMAGES --annotations FILE"
            raise InputError(f"--precision int8: may cost accuracy; add {data} to measure it, or --force to go without")
