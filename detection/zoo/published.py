"""The detectors that maskrcnn-benchmark-vovnet publishes, with their metrics, and the backbones that they start from.

Rows and numbers are those of https://github.com/stigma0617/maskrcnn-benchmark-vovnet, under "Performance on COCO"; the
backbones stand under "ImageNet pretrained weight".
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from vovnet.detection.config.loading import load_recipe
from vovnet.detection.config.model import ModelRecipe

COCO_CLASSES = 80
"""Number of COCO's classes without the background. The published detectors number them from 1 without gaps."""

_LINKS = "https://www.dropbox.com/s/"

Precision = tuple[float, float, float, float]
"""AP, APs, APm and APl in percent."""


@dataclass(frozen=True)
class PublishedRow:
    """A row of the authors' table. The metrics are theirs, on COCO's minival of 2014, and were not measured here."""

    recipe: str
    """The shipped recipe that trains it."""
    box: Precision
    mask: Precision | None = None
    url: str | None = None
    """The address of the file; None if the table links no file of this detector."""

    @property
    def file(self) -> str | None:
        """The name of the published file, or None."""
        return None if self.url is None else self.url.partition("?")[0].rpartition("/")[2]


def _row(recipe: str, link: str | None, box: Precision, mask: Precision | None = None) -> PublishedRow:
    return PublishedRow(f"{recipe}_FPN_2x", box, mask, None if link is None else f"{_LINKS}{link}?dl=1")


PUBLISHED_ROWS = (
    _row("faster_rcnn_R_50", "kmcfd0j3cn9gevz/FRCN-R-50-FPN-2x.pth", (37.5, 21.3, 40.3, 49.5)),
    _row("faster_rcnn_R_101", "wzohk5zm9e7xw7k/FRCN-R-101-FPN-2x.pth", (39.6, 22.8, 43.2, 51.9)),
    _row("faster_rcnn_V_39", "svg9ynha9l9oqp0/FRCN-V-39-FPN-2x.pth", (39.8, 23.7, 42.6, 51.5)),
    _row("faster_rcnn_V_57", "fawts3l0idznvvb/FRCN-V-57-FPN-2x.pth", (40.8, 24.8, 43.8, 52.4)),
    _row("mask_rcnn_R_50", "dmkcu8dc662nnsu/MRCN-R-50-FPN-2x.pth", (38.6, 22.1, 41.3, 51.4), (34.9, 16.0, 37.3, 52.2)),
    _row(
        "mask_rcnn_R_101", "0k73qa5b8fpb45h/MRCN-R-101-FPN-2x.pth", (40.8, 23.2, 44.0, 53.9), (36.7, 16.7, 39.4, 54.3)
    ),
    _row("mask_rcnn_V_39", "3zpmq4nvijqek3m/MRCN-V-39-FPN-2x.pth", (41.0, 24.6, 43.9, 53.1), (36.7, 17.9, 39.3, 53.0)),
    _row("mask_rcnn_V_57", None, (42.0, 25.1, 44.9, 53.8), (37.5, 18.3, 39.8, 54.3)),
)


PUBLISHED_BACKBONES = {
    "vovnet39": f"{_LINKS}s7f4vyfybyc9qpr/vovnet39_statedict_norm.pth?dl=1",
    "vovnet57": f"{_LINKS}b826phjle6kbamu/vovnet57_statedict_norm.pth?dl=1",
}
"""The network of a detection backbone → the address of its file. The norms of ImageNet are folded into its weights."""


def published_row(recipe: str) -> PublishedRow | None:
    """Return the row of a shipped recipe, such as ``faster_rcnn_V_39_FPN_2x``; None if nothing is published for it."""
    return next((row for row in PUBLISHED_ROWS if row.recipe == recipe), None)


def published_model(recipe: str) -> ModelRecipe:
    """Return the model recipe of a row, with COCO's number of classes."""
    return dataclasses.replace(load_recipe(recipe).model, num_classes=COCO_CLASSES)


def coco_categories() -> list[dict[str, Any]]:
    """Return COCO's 80 object categories in the order of their ids, which is the order of the labels 1 to 80."""
    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]  # by id; unused ids are N/A
    return [{"id": i, "name": name} for i, name in enumerate(names) if i > 0 and name != "N/A"]
