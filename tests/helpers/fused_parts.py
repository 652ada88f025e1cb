"""What tests of fused models compare."""

from __future__ import annotations

import torch
from torch import Tensor


def check_detections(got: list[dict[str, Tensor]], expected: list[dict[str, Tensor]]) -> None:
    """Check that each detection has a counterpart: same label, box within 0.1 pixels, score within 0.001, same mask,
    same scores of keypoints."""
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert set(one) == set(other)
        assert len(one["boxes"]) == len(other["boxes"]) > 5
        far = (one["boxes"][:, None] - other["boxes"]).abs().amax(dim=2)
        unlike = (one["scores"][:, None] - other["scores"]).abs() > 1e-3
        far[unlike | (one["labels"][:, None] != other["labels"])] = torch.inf
        nearest, place = far.min(dim=1)
        assert float(nearest.max()) < 0.1
        if "masks" in one:
            assert one["masks"].shape == other["masks"].shape
            assert float((one["masks"] - other["masks"][place]).abs().mean()) < 1e-3
        if "keypoints" in one:  # where a heatmap is flat, another pixel may be the largest by rounding
            assert one["keypoints"].shape == other["keypoints"].shape
            scores = other["keypoints_scores"][place]
            assert float((one["keypoints_scores"] - scores).abs().max()) < 1e-3 * float(scores.abs().max())
        for key, value in one.items():
            assert value.dtype == other[key].dtype


def relative_error(got: Tensor, exact: Tensor) -> float:
    """Return the largest difference, divided by the largest of the exact numbers."""
    assert got.shape == exact.shape
    return float((got.double() - exact).abs().max() / exact.abs().max())
