"""An exported file that is called like a torchvision detector, for evaluation and prediction."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import paste_masks_in_image

from vovnet.detection.config.categories import Category
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.config.parts import validate
from vovnet.detection.legacy.boxes import boxes_to_xywh
from vovnet.errors import InputError
from vovnet.export.prediction import exported_limits, found_rows
from vovnet.export.runtime import ExportedModel, open_exported


class ExportedDetector(nn.Module):
    """Calls an exported file as torchvision's detectors are called. It runs on the CPU, and cannot be trained.

    Attributes:
        exported: the open file.
        categories: ``{"id", "name"}`` in label order, as of a detector of :func:`vovnet.hub.load_detector`.
        preprocessing: how the file prepares an image.
        recipe: what the detector was built from.
    """

    def __init__(self, exported: ExportedModel) -> None:
        """Take an open file.

        Raises:
            InputError: it is a classifier's, or its metadata holds no recipe.
        """
        super().__init__()
        metadata = exported.metadata
        if metadata.kind != "detector":
            raise InputError(f"{exported.path}: is a {metadata.kind}'s file, expected a detector's")
        self.exported = exported
        self.categories = [cast(Category, dict(one)) for one in metadata.categories]
        self.preprocessing = dict(metadata.preprocessing)
        self.recipe = validate(ModelRecipe, dict(metadata.model), str(exported.path))
        limits = exported_limits(metadata)
        self.detections_per_img = limits.detections
        channels = metadata.input.channels
        # What evaluation and prediction ask of torchvision's transform.
        self.transform = SimpleNamespace(
            image_mean=[0.0] * channels, min_size=(self.recipe.min_size,), max_size=self.recipe.max_size
        )
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)
        """Without numbers; a module's device is that of its parameters."""
        if metadata.box_format == "xyxy_inclusive":
            self.boxes_to_xywh = boxes_to_xywh

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Return the detections of images (C, H, W), float32 in 0..1, with masks (N, 1, H, W) if the file has them."""
        found = self.unpasted(images)
        for one, image in zip(found, images, strict=True):
            if "box_masks" in one:
                size = (int(image.shape[-2]), int(image.shape[-1]))
                one["masks"] = paste_masks_in_image(one.pop("box_masks"), one["boxes"], size)
            elif "masks" in one:
                one["masks"] = one["masks"].float()
        return found

    def unpasted(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        """Return what :meth:`forward` does, but masks on grids as ``box_masks`` (N, 1, M, M).

        Raises:
            InputError: an image has another shape than the file takes, or the file's outputs do not fit its metadata.
        """
        outputs = self.exported.run_each([self._pixels(image) for image in images])
        return [self._detections(one) for one in outputs]

    def _pixels(self, image: Tensor) -> NDArray[Any]:
        pixels = image.detach().cpu()
        if self.exported.metadata.input.dtype == "uint8" and pixels.is_floating_point():
            pixels = (pixels * 255).round().to(torch.uint8)
        return pixels.contiguous().numpy()

    def _detections(self, outputs: dict[str, NDArray[Any]]) -> dict[str, Tensor]:
        boxes, scores, labels = found_rows(self.exported.metadata, outputs, str(self.exported.path))
        found = {name: torch.from_numpy(values) for name, values in zip(_NAMES, (boxes, scores, labels), strict=True)}
        if form := self.exported.metadata.masks:
            masks = np.ascontiguousarray(outputs["masks"][: len(scores), None])
            found["box_masks" if form == "box" else "masks"] = torch.from_numpy(masks)
        if self.exported.metadata.keypoints:
            points = torch.from_numpy(outputs["keypoints"][: len(scores)])
            found["keypoints"] = torch.cat((points[..., :2], torch.ones_like(points[..., 2:])), dim=-1)
            found["keypoints_scores"] = points[..., 2].logit(eps=1e-6)  # torchvision's are logits
        return found


_NAMES = ("boxes", "scores", "labels")


def exported_detector(path: str | os.PathLike[str], *, threads: int | None = None) -> ExportedDetector:
    """Open an exported detector, to be called like a torchvision detector.

    Args:
        path: as for :func:`vovnet.export.runtime.open_exported`.
        threads: how many threads compute; None lets the runtime choose.

    Raises:
        InputError: as for that function, or the file is a classifier's.
    """
    return ExportedDetector(open_exported(path, threads=threads))
