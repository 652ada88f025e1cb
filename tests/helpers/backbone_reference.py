"""The table of docs/how-to/choose_a_backbone.md: parameters and operations of each backbone without its classifier.

``python tests/helpers/backbone_reference.py``, run in the checkout, writes it. Nothing is computed: the networks are on
PyTorch's meta device.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import vovnet  # noqa: F401 (registers the networks)

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "choose_a_backbone.md"
SIDE = 640
FREE_SIZE = {"swin_tiny_patch4_window7_224": {"strict_img_size": False}}


def backbone(name: str) -> torch.nn.Module:
    """Return the network with the maps that a detector takes, those of strides 4, 8, 16 and 32, on the meta device."""
    options: dict[str, Any] = FREE_SIZE.get(name, {})
    with torch.device("meta"):
        return timm.create_model(name, features_only=True, out_indices=(-4, -3, -2, -1), **options).eval()


def size(name: str) -> tuple[float, float]:
    """Return millions of parameters, and billions of multiply-adds for an image of `SIDE` × `SIDE` pixels."""
    model = backbone(name)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, SIDE, SIDE, device="meta"))
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return parameters / 1e6, counter.get_total_flops() / 2e9


def page() -> str:
    """Return the page with the numbers of today; the names and notes are the page's own."""

    def row(match: re.Match[str]) -> str:
        parameters, gmacs = size(match[1])
        return f"| `{match[1]}` | {parameters:.1f} M | {gmacs:.1f} |"

    return re.sub(r"^\| `(\w+)` \| [\d.?]+ M \| [\d.?]+ \|", row, PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
