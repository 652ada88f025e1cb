"""Which classes a detector takes for which."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from vovnet.detection.analysis.matching import MATCH_IOU, NOTHING, MatchedImage
from vovnet.detection.figures import new_figure, save_figure
from vovnet.files import atomic_path
from vovnet.results.lettering import drawable

BACKGROUND = "background"
_MAX_WRITTEN = 20  # classes up to which every cell shows its number


def confusion_matrix(images: Iterable[MatchedImage], classes: int, threshold: float) -> NDArray[np.int64]:
    """Count which objects were detected as what.

    The rule: detections with a score of at least ``threshold`` first find objects of their own class as in the
    evaluation, so that the diagonal holds the true detections. Of the others, the pair of an object and a detection
    with the largest IoU of at least 0.5 is a confusion, and so on with what is left. Objects that remain were missed;
    detections that remain, second ones of an object among them, are of the background. Crowd regions and detections
    in them are not counted.

    Args:
        images: from :func:`~.matching.matched_images`.
        classes: number of classes.
        threshold: lowest score that counts.

    Returns:
        (K + 1, K + 1): rows are true classes, columns detected ones. The last row has detections of the background,
        the last column objects that were missed.
    """
    counts = np.zeros((classes + 1, classes + 1), dtype=np.int64)
    for one in images:
        kept = one.scores >= threshold
        true = kept & (one.matches >= 0)
        np.add.at(counts, (one.truth_labels[one.matches[true]], one.labels[true]), 1)
        free = ~one.crowd
        free[one.matches[true]] = False
        rows, columns = np.flatnonzero(kept & (one.matches == NOTHING)), np.flatnonzero(free)
        pairs = _pairs(one.ious[np.ix_(rows, columns)])
        for row, column in pairs:
            counts[one.truth_labels[columns[column]], one.labels[rows[row]]] += 1
        alone = np.delete(rows, [row for row, _ in pairs])
        missed = np.delete(columns, [column for _, column in pairs])
        np.add.at(counts[classes], one.labels[alone], 1)
        np.add.at(counts[:, classes], one.truth_labels[missed], 1)
    return counts


def _pairs(ious: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Return rows and columns of the largest values from 0.5, each row and column once."""
    rows, columns = np.nonzero(ious >= MATCH_IOU)
    taken: tuple[set[int], set[int]] = (set(), set())
    pairs = []
    for index in np.argsort(-ious[rows, columns], kind="stable"):
        row, column = int(rows[index]), int(columns[index])
        if row not in taken[0] and column not in taken[1]:
            taken[0].add(row)
            taken[1].add(column)
            pairs.append((row, column))
    return pairs


def write_confusion(counts: NDArray[np.int64], names: Sequence[str], out: str | os.PathLike[str]) -> None:
    """Write the matrix of :func:`confusion_matrix` as CSV: a row for each true class, a column for each detected one.

    Args:
        counts: (K + 1, K + 1).
        names: of the K classes.
        out: written atomically.
    """
    labels = [*names, BACKGROUND]
    with atomic_path(out) as path, path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["truth", *labels])
        writer.writerows([label, *row] for label, row in zip(labels, counts.tolist(), strict=True))


def plot_confusion(
    counts: NDArray[np.int64], names: Sequence[str], threshold: float, out: str | os.PathLike[str]
) -> None:
    """Draw the matrix of :func:`confusion_matrix`; the colour is the share of a true class.

    Args:
        counts: (K + 1, K + 1).
        names: of the K classes.
        threshold: what the detections' scores were held to.
        out: written atomically.
    """
    labels = [*(drawable(name, 24) for name in names), BACKGROUND]
    many = len(labels) > _MAX_WRITTEN
    side = min(16.0, 3.6 + (0.16 if many else 0.62) * len(labels))
    figure = new_figure(side + 0.8, side)
    axes = figure.add_subplot()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(range(len(labels)), labels, fontsize=5 if many else 9, parse_math=False)
    axes.tick_params(axis="x", rotation=90 if many or max(map(len, labels)) > 6 else 0)
    if not many:
        for (row, column), number in np.ndenumerate(counts):
            if number:
                colour = "white" if shares[row, column] > 0.55 else "black"
                axes.text(column, row, f"{number}", ha="center", va="center", color=colour, fontsize=9)
    axes.set_xlabel("detected")
    axes.set_ylabel("truth")
    axes.set_title(f"confusions, score ≥ {threshold:.2f}, IoU ≥ {MATCH_IOU}", loc="left", fontsize=10)
    figure.colorbar(shown, ax=axes, label="share of the true class", shrink=0.8)
    save_figure(figure, out, grid=False)
