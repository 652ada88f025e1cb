"""timm's evaluation transform (``create_transform(…, is_training=False)``) as operators that exporters take.

What is computed in Python there, from the image's size, is computed in the graph here: timm resizes an image and cuts
a part of fixed size from it. Only this part is computed, so that the graph's shapes are fixed. The rules are those of
timm 1.0 (``timm/data/transforms_factory.py``, ``transforms_imagenet_eval``; ``timm/data/transforms.py``).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from vovnet.errors import InputError, shown
from vovnet.export.resampling import Filter, pillow_resize, resizes_vertically_first, scalar

CropMode = Literal["center", "squash", "border"]
"""``center``: the shorter side is scaled to its limit. ``squash``: both are. ``border``: the longer is, and padded."""

Size = tuple[Any, Any]
"""Height and width: numbers, or tensors () int64 that follow the image's size."""


class EvaluationTransform(nn.Module):
    """Resizes, crops and normalises images as timm does before evaluation.

    Rows and columns are resized in the installed Pillow's order, see
    :func:`vovnet.export.resampling.resizes_vertically_first`. For images of all sizes there is one difference from
    timm: a side that is scaled in ``border`` mode, or for an input that is not square, to exactly k + ½ pixels, which
    timm rounds as the last bit of a float64 says, is rounded to the even number.

    Args:
        config: what ``timm.data.resolve_data_config`` returns.
        size: height and width of all images; None for images of all sizes.
    """

    def __init__(self, config: Mapping[str, Any], size: tuple[int, int] | None = None) -> None:
        super().__init__()
        self.mode, self.filter = _choices(config)
        self.size = size
        height, width = (int(side) for side in config["input_size"][-2:])
        percent = float(config["crop_pct"])
        self.target = (height, width)
        self.limits = (math.floor(height / percent), math.floor(width / percent))
        mean = [float(value) for value in config["mean"]]
        self.pads = self.mode == "border" or self.limits[0] < height or self.limits[1] < width
        fill = [float(round(255 * value)) if self.mode == "border" else 0.0 for value in mean]
        self.fill = nn.Buffer(_per_channel(fill), persistent=False)
        self.mean = nn.Buffer(_per_channel(mean), persistent=False)
        self.std = nn.Buffer(_per_channel(config["std"]), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Take images (N, C, H, W), float of whole numbers in 0..255; return what the network takes."""
        old = self.size or (scalar(images.shape[-2]), scalar(images.shape[-1]))
        new = self._resized(old)
        top, left = (_crop_start(side, target) for side, target in zip(new, self.target, strict=True))
        order = resizes_vertically_first(old, new)
        pixels = pillow_resize(images, new, self.filter, (top, left, *self.target), vertical_first=order)
        if self.pads:
            rows, columns = torch.arange(self.target[0]) + top, torch.arange(self.target[1]) + left
            inside = ((rows >= 0) & (rows < new[0]))[:, None] & ((columns >= 0) & (columns < new[1]))
            pixels = torch.where(inside, pixels, self.fill)
        return (pixels / 255 - self.mean) / self.std

    def _resized(self, old: Size) -> Size:
        """Return height and width after timm's resize."""
        height, width = old
        if self.mode == "squash":
            return self.limits
        if self.mode == "center" and self.limits[0] == self.limits[1]:
            shorter = _least(height, width)
            return self.limits[0] * height // shorter, self.limits[0] * width // shorter
        longest = self.mode == "border"
        if self.size is not None:
            ratios = self.size[0] / self.limits[0], self.size[1] / self.limits[1]
            ratio = max(ratios) if longest else min(ratios)
            return max(round(self.size[0] / ratio), 1), max(round(self.size[1] / ratio), 1)
        # height / limit below width / limit, in integers
        by_height = height * self.limits[1] < width * self.limits[0]
        by_height = torch.logical_not(by_height) if longest else by_height
        numerator = torch.where(by_height, self.limits[0], self.limits[1])
        divisor = torch.where(by_height, height, width)
        return _rounded(height * numerator, divisor), _rounded(width * numerator, divisor)


def _choices(config: Mapping[str, Any]) -> tuple[CropMode, Filter]:
    mode, resample = config.get("crop_mode") or "center", config["interpolation"]
    if mode not in get_args(CropMode):
        raise InputError(f"crop_mode of the model: expected one of {', '.join(get_args(CropMode))}, got {shown(mode)}")
    if resample not in get_args(Filter):
        raise InputError(
            f"interpolation of the model: expected {' or '.join(get_args(Filter))}, which can be exported, got "
            f"{shown(resample)}; set pretrained_cfg['interpolation'] if the model may be used with another"
        )
    return cast("CropMode", mode), cast("Filter", resample)


def _least(a: Any, b: Any) -> Any:
    return torch.minimum(a, b) if isinstance(a, Tensor) else min(a, b)


def _rounded(numerator: Tensor, divisor: Tensor) -> Tensor:
    """Return the quotient as Python rounds it: half to even. At least 1, as Pillow has no images without pixels."""
    doubled = 2 * numerator + divisor
    up = doubled // (2 * divisor)  # half up
    tie = (up * 2 * divisor == doubled).to(torch.int64)
    return (up - tie * (up - up // 2 * 2)).clamp(min=1)


def _crop_start(side: Any, target: int) -> Any:
    """Return the first row of the part: ``round((side - target) / 2)``; below 0 if the image is padded.

    See ``center_crop`` in torchvision and ``center_crop_or_pad`` in timm: of an odd number of rows to pad, the smaller
    half comes first.
    """
    if not isinstance(side, Tensor):
        return round((side - target) / 2) if side >= target else -((target - side) // 2)
    missing = (side - target).abs()
    half = missing // 2
    odd = missing - 2 * half
    return torch.where(side >= target, half + odd * (half - half // 2 * 2), -half)


def _per_channel(values: Any) -> Tensor:
    return torch.tensor([float(value) for value in values], dtype=torch.float32)[:, None, None]
