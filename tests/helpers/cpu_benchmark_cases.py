"""Small cases, and a stand-in for ``vovnet.fuse``, for the tests of the CPU benchmark."""

from __future__ import annotations

import copy

import torch
from torch import nn

from vovnet.detection.cpu_benchmark.cases import Case

TINY = Case("tiny", "vovnet27_slim", 2, 64, 96, "fp32")
TINY_BF16 = Case("tiny-bf16", "vovnet27_slim", 1, 64, 96, "bf16")
SMALL_DETECTOR = Case("small-detector", "faster_rcnn_vovnet39_fpn", 1, 64, 96, "fp32", detector=True)
TINY_DETECTOR = Case("tiny-detector", "coco_tiny", 1, 64, 96, "fp32", detector=True)


def fake_fuse(model: nn.Module, precision: str = "fp32") -> nn.Module:
    return copy.deepcopy(model).to({"fp32": torch.float32, "bf16": torch.float64}[precision])


def cells(text: str) -> list[list[str]]:
    """Return the cells of a Markdown table's rows."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
