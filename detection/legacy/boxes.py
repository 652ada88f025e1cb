"""Inclusive boxes: both corners are pixels of the box, so a box from 3 to 5 is 3 pixels wide ("+1"), as in Detectron.

All boxes here are (…, 4) x0, y0, x1, y1 in pixels, float32; x1 and y1 are the coordinates of the last pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder
from torchvision.ops import nms


def box_areas(boxes: Tensor) -> Tensor:
    """Return areas (N,) in pixels: (x1 - x0 + 1) · (y1 - y0 + 1). Reference structures/bounding_box.py:226-231."""
    return (boxes[:, 2] - boxes[:, 0] + 1) * (boxes[:, 3] - boxes[:, 1] + 1)


def box_iou(first: Tensor, second: Tensor) -> Tensor:
    """Return the IoU (N, M) of boxes (N, 4) and (M, 4). Reference structures/boxlist_ops.py:53-89."""
    low = torch.max(first[:, None, :2], second[:, :2])
    high = torch.min(first[:, None, 2:], second[:, 2:])
    sides = (high - low + 1).clamp(min=0)
    shared = sides[:, :, 0] * sides[:, :, 1]
    return shared / (box_areas(first)[:, None] + box_areas(second) - shared)


def clip_boxes(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Clip (…, 4) to [0, width - 1] × [0, height - 1]; torchvision clips to width and height.

    Reference structures/bounding_box.py:214-224.

    Args:
        boxes: (…, 4).
        size: height and width of the image.
    """
    height, width = size
    x = boxes[..., 0::2].clamp(min=0, max=width - 1)
    y = boxes[..., 1::2].clamp(min=0, max=height - 1)
    return torch.stack((x, y), dim=-1).flatten(-2)


def resize_boxes(boxes: Tensor, old: Sequence[int], new: Sequence[int]) -> Tensor:
    """Multiply inclusive boxes (N, 4) by the ratios of two images' sizes (height, width).

    Reference structures/bounding_box.py:91-127.
    """
    ratio_y, ratio_x = (float(after) / float(before) for before, after in zip(old, new, strict=True))
    return boxes * boxes.new_tensor([ratio_x, ratio_y, ratio_x, ratio_y])


def boxes_to_xywh(boxes: Tensor) -> Tensor:
    """Convert to COCO's x, y, width, height (N, 4) with width = x1 - x0 + 1. Reference bounding_box.py:55-89."""
    return torch.cat((boxes[:, :2], boxes[:, 2:] - boxes[:, :2] + 1), dim=1)


def legacy_nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Run non-maximum suppression; return the indices of the kept boxes in ascending order, not by score.

    On the CPU, boxes are suppressed at IoU >= threshold, like in the reference (csrc/cpu/nms_cpu.cpp:56-61). On a GPU
    they are suppressed at IoU > threshold (csrc/cuda/nms.cu:60), as when the published detectors were trained.

    Args:
        boxes: (N, 4).
        scores: (N,).
        threshold: rounded to float32, because the reference compares in float32.
    """
    limit = np.float32(threshold)
    if not boxes.is_cuda:
        limit = np.nextafter(limit, np.float32(0))  # so that torchvision's > means >=
    open_ended = boxes + boxes.new_tensor([0, 0, 1, 1])  # the same widths in torchvision's convention
    return nms(open_ended, scores, float(limit)).sort().values


def smooth_l1(difference: Tensor, beta: float) -> Tensor:
    """Return for each element d²/(2·beta) if its absolute value d is below ``beta``, otherwise d - beta/2."""
    distance = difference.abs()
    return torch.where(distance < beta, 0.5 * distance**2 / beta, distance - 0.5 * beta)


class LegacyBoxCoder(BoxCoder):
    """Encodes boxes as offsets from others, with inclusive widths. Reference modeling/box_coder.py:13-95.

    torchvision's (models/detection/_utils.py, ``BoxCoder``) has no +1 in widths and no -1 in the decoded corner.
    """

    def encode_single(self, reference_boxes: Tensor, proposals: Tensor) -> Tensor:
        """Return (N, 4) dx, dy, dw, dh times the weights, from targets (N, 4) and proposals (N, 4)."""
        width, height, x, y = _centres(proposals)
        wanted_width, wanted_height, wanted_x, wanted_y = _centres(reference_boxes)
        wx, wy, ww, wh = self.weights
        return torch.stack(
            (
                wx * (wanted_x - x) / width,
                wy * (wanted_y - y) / height,
                ww * torch.log(wanted_width / width),
                wh * torch.log(wanted_height / height),
            ),
            dim=1,
        )

    def decode_single(self, rel_codes: Tensor, boxes: Tensor) -> Tensor:
        """Return the boxes (N, 4·K) of offsets (N, 4·K) from boxes (N, 4)."""
        width, height, x, y = (value[:, None] for value in _centres(boxes.to(rel_codes.dtype)))
        wx, wy, ww, wh = self.weights
        dw = (rel_codes[:, 2::4] / ww).clamp(max=self.bbox_xform_clip)
        dh = (rel_codes[:, 3::4] / wh).clamp(max=self.bbox_xform_clip)
        centre_x = rel_codes[:, 0::4] / wx * width + x
        centre_y = rel_codes[:, 1::4] / wy * height + y
        half_width, half_height = 0.5 * (torch.exp(dw) * width), 0.5 * (torch.exp(dh) * height)
        corners = (centre_x - half_width, centre_y - half_height, centre_x + half_width - 1, centre_y + half_height - 1)
        return torch.stack(corners, dim=2).flatten(1)


def legacy_box_coder(weights: tuple[float, float, float, float]) -> LegacyBoxCoder:
    """Return a coder with the reference's bound on dw and dh, log(1000 / 16). Reference modeling/box_coder.py:13."""
    return LegacyBoxCoder(weights, bbox_xform_clip=math.log(1000.0 / 16))


def _centres(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return widths, heights, and centres x and y of boxes (N, 4), each (N,)."""
    width = boxes[:, 2] - boxes[:, 0] + 1
    height = boxes[:, 3] - boxes[:, 1] + 1
    return width, height, boxes[:, 0] + 0.5 * width, boxes[:, 1] + 0.5 * height
