"""The table of formats: what each is called, and the function that reads it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vovnet.detection.formats.cvat import read_cvat
from vovnet.detection.formats.label_studio import read_label_studio
from vovnet.detection.formats.labelme import read_labelme
from vovnet.detection.formats.labels import Labels
from vovnet.detection.formats.via import read_via
from vovnet.detection.formats.voc import read_voc
from vovnet.detection.formats.yolo import read_yolo


@dataclass(frozen=True)
class Format:
    """A format of labels other than COCO JSON."""

    title: str
    """What it is called in texts."""
    read: Callable[[Path, str | None, str | None, Path | None], Labels]
    """Reads a path, given the user's split, the split to take by default, and the folder of images."""


FORMATS: dict[str, Format] = {
    "yolo": Format("YOLO", read_yolo),
    "voc": Format("PASCAL VOC", read_voc),
    "labelme": Format("labelme", read_labelme),
    "via": Format("VIA", read_via),
    "cvat": Format("CVAT for images", read_cvat),
    "label_studio": Format("Label Studio", read_label_studio),
}
"""The formats by their names."""
