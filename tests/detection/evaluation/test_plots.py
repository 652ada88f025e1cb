"""Precision over recall, drawn from arrays."""

import numpy as np
from PIL import Image

from vovnet.detection.analysis.thresholds import OperatingPoint
from vovnet.detection.evaluation.plots import plot_precision_recall


def test_precision_over_recall(tmp_path):
    precision = np.full((10, 101, 3), -1.0)
    precision[:, :, 0] = np.linspace(1, 0, 101)
    precision[:, :, 1] = 0.5
    plot_precision_recall({"bbox": precision, "segm": precision}, tmp_path / "pr.png", ["a", "b", "c"])
    plot_precision_recall({"bbox": np.full((10, 101, 3), -1.0)}, tmp_path / "none.png")
    plot_precision_recall({"bbox": np.zeros((10, 101, 80))}, tmp_path / "many.png")
    assert Image.open(tmp_path / "pr.png").width > 1.8 * Image.open(tmp_path / "none.png").width


def test_the_best_thresholds_are_marked(tmp_path):
    precision = np.full((10, 101, 2), 0.5)
    plot_precision_recall({"bbox": precision}, tmp_path / "plain.png", ["a", "b"])
    points = [OperatingPoint(0.25, 3, 1, 1), OperatingPoint(0.5, 0, 0, 2)]
    plot_precision_recall({"bbox": precision}, tmp_path / "marked.png", ["a", "b"], {"bbox": points})
    plain, marked = (np.asarray(Image.open(tmp_path / name).convert("RGB")) for name in ("plain.png", "marked.png"))
    rows, columns = np.nonzero((plain != marked).any(axis=2))
    # Precision and recall are 0.75: right of the middle and in the upper half. The second class found nothing.
    assert columns.min() > plain.shape[1] / 2
    assert rows.max() < plain.shape[0] / 2
