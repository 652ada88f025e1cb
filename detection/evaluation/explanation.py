"""What an evaluation says beyond COCO's numbers: in its metrics, and in files."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vovnet.detection.analysis.confusion import plot_confusion, write_confusion
from vovnet.detection.analysis.explaining import Analysis, analyse, write_thresholds
from vovnet.detection.data.protocol import DetectionDataset
from vovnet.detection.evaluation.coco_eval import CocoEvaluator
from vovnet.detection.evaluation.html_report import write_report
from vovnet.detection.evaluation.worst import plot_worst
from vovnet.detection.figures import warn_without_plot

if TYPE_CHECKING:
    from pycocotools.cocoeval import COCOeval

FILES = ("thresholds.csv", "confusion.csv", "confusion.png", "worst.png")


def analyses_of(evaluated: Mapping[str, COCOeval]) -> dict[str, Analysis]:
    """Return the analyses of boxes, masks and keypoints, as far as they were evaluated, in this order."""
    return {kind: analyse(one) for kind, one in evaluated.items()}


def explained(metrics: Mapping[str, Any], analyses: Mapping[str, Analysis]) -> dict[str, Any]:
    """Return metrics with what analyses add to them, at IoU 0.5, or of keypoints OKS 0.5.

    Args:
        metrics: from :meth:`~.coco_eval.CocoEvaluator.summarize`.
        analyses: from :func:`analyses_of`.

    Returns:
        The metrics, and for each IoU type:

        ``best``: the score ``threshold`` of the largest F1 of all classes together, and its ``precision``, ``recall``
        and ``F1`` in 0..1.

        ``errors``: for each of :data:`~vovnet.detection.analysis.tide.KINDS` the ``count`` and ``dAP50``, what
        AP50 would gain without them, in 0..1; and ``AP50`` as TIDE computes it. Not of keypoints.

        Each entry of ``per_class`` also has the four numbers of its own best threshold; ``count_threshold``, the score
        from which on there are as many detections as objects; and ``count_error`` and ``count_bias``: by how many the
        detections of an image differ from the objects at that score, in the mean over all images, without and with the
        sign.
    """
    added: dict[str, Any] = {name: {} for name in ("best", "errors")} if analyses else {}
    per_class = dict(metrics["per_class"])
    for kind, one in analyses.items():
        for name, value in one.numbers().items():
            added[name][kind] = value
        per_class[kind] = [{**a, **b} for a, b in zip(per_class[kind], one.class_numbers(), strict=True)]
    return {**metrics, **added, "per_class": per_class}


def write_explanation(
    metrics: Mapping[str, Any],
    analyses: Mapping[str, Analysis],
    evaluator: CocoEvaluator,
    dataset: DetectionDataset,
    places: Mapping[int, int],
    folder: Path,
) -> None:
    """Write ``thresholds.csv``, ``confusion.csv``, ``confusion.png``, ``worst.png`` and ``report.html``.

    Confusions and the worst images are those of boxes, or of masks if boxes were not evaluated.

    Args:
        metrics: from :func:`explained`.
        analyses: from :func:`analyses_of`.
        evaluator: what was analysed.
        dataset: has the pixels.
        places: the index in the dataset of an image's id.
        folder: has ``precision_recall.png``, if it could be drawn.
    """
    if not analyses:  # an earlier evaluation may have left them
        for name in FILES:
            (folder / name).unlink(missing_ok=True)
        write_report(metrics, analyses, {}, folder)
        return
    write_thresholds(analyses, folder / "thresholds.csv")
    kind, one = next(iter(analyses.items()))
    write_confusion(one.confusion, one.names, folder / "confusion.csv")
    with warn_without_plot(folder / "confusion.png"):
        plot_confusion(one.confusion, one.names, one.overall.threshold, folder / "confusion.png")
    with warn_without_plot(folder / "worst.png"):
        plot_worst(one, evaluator.evaluated[kind], evaluator.detections, dataset, places, folder / "worst.png")
    names = {image["id"]: str(image["file_name"]) for image in evaluator.ground_truth["images"] if "file_name" in image}
    write_report(metrics, analyses, names, folder)
