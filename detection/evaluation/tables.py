"""The numbers of an evaluation as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vovnet.detection.analysis.explaining import ALL
from vovnet.detection.analysis.tide import KINDS
from vovnet.detection.evaluation.coco_eval import IOU_TYPES, metric_names, percent
from vovnet.terminal.text import padded, printable, shortened, width_of

_MAX_NAME = 60  # characters of a category's name in a table


def format_metrics(metrics: Mapping[str, Any]) -> str:
    """Return COCO's numbers and the per-class table as text, in percent; '–' if there is nothing to count.

    Args:
        metrics: what :func:`vovnet.detection.evaluate` returns.

    Returns:
        Lines for a terminal, without colours.
    """
    kinds = {"bbox": "boxes", "segm": "masks", "keypoints": "points"}
    present = [iou_type for iou_type in IOU_TYPES if iou_type in metrics]
    lines: list[str] = []
    above: tuple[str, ...] = ()
    for iou_type in present:
        if (names := metric_names(iou_type)) != above:  # COCO has other numbers for keypoints
            lines.append(f"{'in %':6}" + "".join(f"{name:>7}" for name in names))
            above = names
        lines.append(f"{kinds[iou_type]:6}" + "".join(f"{percent(metrics[iou_type][name]):>7}" for name in names))
    tables = metrics.get("per_class", {})
    classes = tables.get(present[0], []) if present else []
    if classes:
        labels = [shortened(printable(entry["name"]), _MAX_NAME) for entry in classes]
        width = max(5, *map(width_of, labels))
        header = "".join(f"  {kinds[iou_type]} AP  AP50" for iou_type in present)
        lines += ["", f"{'class':{width}} {'objects':>8}{header}"]
        for position, (label, entry) in enumerate(zip(labels, classes, strict=True)):
            row = f"{padded(label, width)} {entry['objects']:>8}"
            for iou_type in present:
                one = tables[iou_type][position]
                row += f"  {percent(one['AP']):>8} {percent(one['AP50']):>5}"
            lines.append(row)
    for iou_type in present:
        lines += _threshold_table(metrics, iou_type, kinds[iou_type]) + _error_table(metrics, iou_type, kinds[iou_type])
    return "\n".join(lines)


def _threshold_table(metrics: Mapping[str, Any], iou_type: str, kind: str) -> list[str]:
    """Return the best score thresholds, if there are any."""
    best = metrics.get("best", {}).get(iou_type)
    if best is None:
        return []
    classes = metrics["per_class"][iou_type]
    labels = [ALL, *(shortened(printable(entry["name"]), _MAX_NAME) for entry in classes)]
    width = max(width_of(f"best F1, {kind}"), *map(width_of, labels))
    lines = ["", f"{f'best F1, {kind}':{width}}  score  precision  recall     F1  count at  count error    bias"]
    for label, entry in zip(labels, [best, *classes], strict=True):
        row = f"{padded(label, width)} {entry['threshold']:>6.2f} {percent(entry['precision']):>10}"
        row += f" {percent(entry['recall']):>7} {percent(entry['F1']):>6}"
        if "count_error" in entry:
            row += f" {entry['count_threshold']:>9.2f} {entry['count_error']:>12.2f} {entry['count_bias']:>+7.2f}"
        lines.append(row)
    return lines


def _error_table(metrics: Mapping[str, Any], iou_type: str, kind: str) -> list[str]:
    """Return the kinds of errors, if they were counted."""
    errors = metrics.get("errors", {}).get(iou_type)
    if errors is None:
        return []
    width = len(f"errors, {kind}")
    return [
        "",
        f"{f'errors, {kind}':{width}}" + "".join(f"{name:>11}" for name in KINDS),
        f"{'number':{width}}" + "".join(f"{errors[name]['count']:>11}" for name in KINDS),
        f"{'cost':{width}}" + "".join(f"{percent(errors[name]['dAP50']):>11}" for name in KINDS) + "  % AP50",
    ]
