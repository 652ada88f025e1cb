"""Detectors for the measurements, built without recipes, which need pydantic; and the operations they take."""

from __future__ import annotations

from collections.abc import Callable

import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import FasterRCNN

from benchmarks.batches import CLASSES
from benchmarks.gpu.setting import Setting
from vovnet.adapters import fpn_backbone


def build_detector(backbone: str, size: tuple[int, int], setting: Setting) -> FasterRCNN:
    """Return Faster R-CNN with FPN over a timm network, as the recipes build it: frozen norms, random weights.

    Args:
        backbone: name of a timm network.
        size: height and width of the images, which are not resized.
        setting: has the device, where the detector is put, channels-last; on the CPU it has fewer proposals.
    """
    torch.manual_seed(0)
    # Norms are frozen only if weights are to be loaded.
    features = fpn_backbone(backbone, pretrained=True, download=False, norm="frozen_bn")
    detector = FasterRCNN(
        features,
        CLASSES + 1,
        min_size=min(size),
        max_size=max(size),
        image_mean=features.mean,
        image_std=features.std,
        rpn_post_nms_top_n_test=setting.size(1000, 10),
        box_batch_size_per_image=setting.size(512, 10),
        _skip_resize=True,
    )
    return detector.to(setting.device).to(memory_format=torch.channels_last)


def build_backbone(backbone: str, device: torch.device) -> nn.Module:
    """Return a timm network that returns its maps of strides 4 to 32, with random weights, channels-last."""
    torch.manual_seed(0)
    net = timm.create_model(backbone, features_only=True, out_indices=(1, 2, 3, 4)).eval()
    return net.to(device).to(memory_format=torch.channels_last)


def operations_of(work: Callable[[], object]) -> int:
    """Return the multiplications and additions of convolutions and matrix products that ``work`` computes."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()
