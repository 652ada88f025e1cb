"""Precision over recall, drawn from arrays."""

import numpy as np
from PIL import Image

from vovnet.detection.evaluation.plots import plot_precision_recall


def test_precision_over_recall(tmp_path):
    precision = np.full((10, 101, 3), -1.0)
    precision[:, :, 0] = np.linspace(1, 0, 101)
    precision[:, :, 1] = 0.5
    plot_precision_recall({"bbox": precision, "segm": precision}, tmp_path / "pr.png", ["a", "b", "c"])
    plot_precision_recall({"bbox": np.full((10, 101, 3), -1.0)}, tmp_path / "none.png")
    plot_precision_recall({"bbox": np.zeros((10, 101, 80))}, tmp_path / "many.png")
    assert Image.open(tmp_path / "pr.png").width > 1.8 * Image.open(tmp_path / "none.png").width
