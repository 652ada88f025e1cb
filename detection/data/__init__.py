"""Datasets for training and evaluation, their transforms and loaders.

:class:`DetectionDataset` is the protocol that every dataset follows; :class:`vovnet.detection.data.coco.CocoDataset`
reads COCO JSON.
"""

from vovnet.detection.config.categories import Category
from vovnet.detection.data.protocol import DetectionDataset, Target

__all__ = ["Category", "DetectionDataset", "Target"]
