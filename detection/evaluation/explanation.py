"""What an evaluation says beyond COCO's numbers: in its metrics, and in files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vovnet.detection.analysis.confusion import plot_confusion, write_confusion
from vovnet.detection.analysis.explaining import Analysis, analyse, write_thresholds
from vovnet.detection.figures import warn_without_plot

if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval

FILES = ("thresholds.csv", "confusion.csv", "confusion.png")


def analyses_of(evaluated: Mapping[str, COCOeval]) -> dict[str, Analysis]:
    """Return the analyses of boxes and masks, as far as they were evaluated, boxes first."""
    return {kind: analyse(one) for kind, one in evaluated.items() if kind in ("bbox", "segm")}


def explained(metrics: Mapping[str, Any], analyses: Mapping[str, Analysis]) -> dict[str, Any]:
    """Return metrics with what analyses add to them, at IoU 0.5.

    Args:
        metrics: from :meth:`~.coco_eval.CocoEvaluator.summarize`.
        analyses: from :func:`analyses_of`.

    Returns:
        The metrics, and for each IoU type (``bbox``, ``segm``):

        ``best``: the score ``threshold`` of the largest F1 of all classes together, and its ``precision``, ``recall``
        and ``F1`` in 0..1.

        ``errors``: for each of :data:`~vovnet.detection.analysis.tide.KINDS` the ``count`` and ``dAP50``, what
        AP50 would gain without them, in 0..1; and ``AP50`` as TIDE computes it.

        Each entry of ``per_class`` also has the four numbers of its own best threshold, and ``count_error`` and
        ``count_bias``: by how many the detections of an image differ from the objects at that threshold, in the mean
        over all images, without and with the sign.
    """
    added: dict[str, Any] = {name: {} for name in ("best", "errors")} if analyses else {}
    per_class = dict(metrics["per_class"])
    for kind, one in analyses.items():
        for name, value in one.numbers().items():
            added[name][kind] = value
        per_class[kind] = [{**a, **b} for a, b in zip(per_class[kind], one.class_numbers(), strict=True)]
    return {**metrics, **added, "per_class": per_class}


def write_explanation(analyses: Mapping[str, Analysis], folder: Path) -> None:
    """Write ``thresholds.csv``, and the confusions of boxes (without boxes, of masks) as CSV and drawing."""
    if not analyses:  # an earlier evaluation may have left them
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        return
    write_thresholds(analyses, folder / "thresholds.csv")
    one = next(iter(analyses.values()))
    write_confusion(one.confusion, one.names, folder / "confusion.csv")
    with warn_without_plot(folder / "confusion.png"):
        plot_confusion(one.confusion, one.names, one.overall.threshold, folder / "confusion.png")
