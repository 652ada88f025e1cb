"""Where training and validation data is: an entry of a recipe's ``data.train`` and ``data.val``."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from vovnet.detection.config.fields import Number, PathText, Text
from vovnet.detection.config.parts import recipe_part

LABELS = ("annotations", "coco", "yolo", "voc", "hf", "folder")
"""The keys that name labels; a source has one of them."""


@recipe_part("data")
class DataSource:
    """Labels, and the folder of their images where the labels do not say it."""

    images: PathText = ""
    """Folder of images that the names in the labels are relative to. COCO files need it. (Empty is none, as below.)"""
    annotations: PathText = ""
    """COCO file of annotations."""
    coco: PathText = ""
    """The same as ``annotations``."""
    yolo: PathText = ""
    """``data.yaml`` of YOLO, ``obj.data``, or a folder with one of these or with ``classes.txt``."""
    voc: PathText = ""
    """Folder of PASCAL VOC, or with ``.xml`` files beside the images."""
    hf: PathText = ""
    """Dataset of the Hugging Face Hub with boxes, ``ORG/NAME`` or ``ORG/NAME@REVISION``. It is downloaded once."""
    folder: PathText = ""
    """Folder or file of any known format, which is found out."""
    split: Text | None = None
    """Split of the data, such as ``train``. null takes ``train`` for training, and ``val`` or else ``test`` for
    validation; data without splits is taken as a whole."""
    part: Annotated[list[Annotated[Number, Field(ge=0, le=1)]], Field(min_length=2, max_length=2)] | None = None
    """``[0, 0.8]``: the part of the images, in an order by their names that looks random but is the same each time."""

    def __post_init__(self) -> None:
        given = [key for key in LABELS if getattr(self, key)]
        if len(given) != 1:
            raise ValueError(f"one of the keys {', '.join(LABELS)}")
        if given[0] in ("annotations", "coco") and not self.images:
            raise ValueError(f"a folder of images (key images) beside {given[0]}")
        if given[0] in ("annotations", "coco") and self.split is not None:
            raise ValueError(f"no split beside {given[0]}: a COCO file is one split")
        if self.part is not None and self.part[0] >= self.part[1]:
            raise ValueError("part as [low, high] with low < high")

    @property
    def coco_file(self) -> str:
        """The COCO file; empty for other labels."""
        return self.annotations or self.coco

    @property
    def labels(self) -> str:
        """The path of the labels, whatever their format."""
        return next(filter(None, (getattr(self, key) for key in LABELS)))


def _from_path(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    return {"hf": value.removeprefix("hf:")} if value.startswith("hf:") else {"folder": value}


PathOrSource = Annotated[DataSource, BeforeValidator(_from_path, json_schema_input_type=str | DataSource)]
"""A source, or a path alone, which is its ``folder``, or ``hf:ORG/NAME``."""
