"""One page with everything that an evaluation says, for people: it needs no other file and no network."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vovnet.detection.analysis.explaining import ALL, Analysis
from vovnet.detection.analysis.tide import KINDS
from vovnet.detection.evaluation.coco_eval import IOU_TYPES, metric_names, percent
from vovnet.files import write_text
from vovnet.terminal.text import printable

_TITLES = {"bbox": "Boxes", "segm": "Masks", "keypoints": "Keypoints"}
_MEANINGS = {
    "class": "right place, wrong class",
    "location": "right class, IoU from 0.1 to 0.5",
    "both": "wrong class, IoU from 0.1 to 0.5",
    "duplicate": "second detection of an object",
    "background": "detection of nothing",
    "missed": "object without a detection",
}
_DRAWINGS = (
    ("precision_recall.png", "Precision over recall", "A point is the best score threshold of a class."),
    ("confusion.png", "Confusions", "Rows are the truth, columns what was detected."),
    ("worst.png", "The images with the most errors", "Missed and false together, each class at its best threshold."),
)
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;color:#222;max-width:1100px;margin:2em auto;padding:0 1em}
table{border-collapse:collapse;margin:.6em 0}th,td{padding:.2em .7em;text-align:right;border-bottom:1px solid #ddd}
th:first-child,td:first-child,td.text{text-align:left;overflow-wrap:anywhere}img{max-width:100%;height:auto}
p.note{color:#555;margin:.2em 0}.wide{overflow-x:auto}"""


def write_report(
    metrics: Mapping[str, Any],
    analyses: Mapping[str, Analysis],
    file_names: Mapping[int, str],
    folder: Path,
    worst: int = 20,
) -> None:
    """Write ``report.html``: all tables, the drawings that are in the folder, and the images with the most errors.

    Shares are in percent.

    Args:
        metrics: what ``metrics.json`` has.
        analyses: of the IoU types that were analysed.
        file_names: names of images by their ids; others are called by their id.
        folder: has the drawings, and gets the page.
        worst: the number of images that are listed.
    """
    parts = [_coco(metrics)]
    for kind in analyses:
        parts += [_classes(metrics, kind), _errors(metrics, kind)]
    parts += [_drawing(folder / name, title, note) for name, title, note in _DRAWINGS]
    parts += [_worst(one, file_names, worst) for one in list(analyses.values())[:1]]
    body = "\n".join(part for part in parts if part)
    write_text(
        folder / "report.html",
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Evaluation</title>'
        f"<style>{_STYLE}</style></head><body>\n<h1>Evaluation</h1>\n{body}\n</body></html>\n",
    )


def _text(value: object) -> str:
    """Return a text from data in a form that is only ever text to a browser."""
    return html.escape(printable(str(value)), quote=True)


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    head = "".join(f"<th>{_text(name)}</th>" for name in columns)
    lines = "\n".join("<tr>" + "".join(f"<td>{_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{lines}\n</tbody></table></div>'


def _coco(metrics: Mapping[str, Any]) -> str:
    parts = ["<h2>COCO's numbers</h2>", '<p class="note">In percent.</p>']
    for kind in IOU_TYPES:
        if kind in metrics:
            names = metric_names(kind)
            parts.append(_table(["", *names], [[_TITLES[kind], *(percent(metrics[kind][name]) for name in names)]]))
    return "\n".join(parts)


def _classes(metrics: Mapping[str, Any], kind: str) -> str:
    columns = (
        "class",
        "objects",
        "AP",
        "AP50",
        "best score",
        "precision",
        "recall",
        "F1",
        "count at",
        "count error",
        "bias",
    )
    rows: list[list[object]] = []
    for entry in metrics["per_class"][kind]:
        row = [entry["name"], entry["objects"], percent(entry["AP"]), percent(entry["AP50"]), *_point(entry)]
        counts = [f"{entry['count_threshold']:.2f}", f"{entry['count_error']:.2f}", f"{entry['count_bias']:+.2f}"]
        rows.append([*row, *counts])
    objects = sum(entry["objects"] for entry in metrics["per_class"][kind])
    means = [percent(metrics[kind][name]) for name in ("AP", "AP50")]
    rows.insert(0, [ALL, objects, *means, *_point(metrics["best"][kind]), "", "", ""])
    note = (
        "Precision, recall and F1 in percent at the score threshold with the best F1, at "
        f"{'OKS' if kind == 'keypoints' else 'IoU'} 0.5. Count at: the score from which on there are as many "
        "detections as objects. Count error: by how many the detections of an image differ from its objects at that "
        "score; bias: the same with its sign, above 0 too many."
    )
    return f'<h2>{_TITLES[kind]}: classes</h2>\n<p class="note">{note}</p>\n{_table(columns, rows)}'


def _point(entry: Mapping[str, Any]) -> list[str]:
    return [f"{entry['threshold']:.2f}", *(percent(entry[name]) for name in ("precision", "recall", "F1"))]


def _errors(metrics: Mapping[str, Any], kind: str) -> str:
    errors = metrics["errors"].get(kind)
    if errors is None:
        return ""
    rows = [[name, _MEANINGS[name], errors[name]["count"], percent(errors[name]["dAP50"])] for name in KINDS]
    note = "What AP50 would gain, in percent, without the errors of a kind (TIDE). Errors of all scores are counted."
    table = _table(("kind", "an error is a", "number", "cost"), rows)
    return f'<h2>{_TITLES[kind]}: kinds of errors</h2>\n<p class="note">{note}</p>\n{table}'


def _drawing(path: str | os.PathLike[str], title: str, note: str) -> str:
    """Return a drawing as a part of the page; nothing if it was not drawn."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        return ""
    source = f"data:image/png;base64,{base64.b64encode(data).decode('ascii')}"
    return f'<h2>{title}</h2>\n<p class="note">{note}</p>\n<img alt="{title}" src="{source}">'


def _worst(analysis: Analysis, file_names: Mapping[int, str], most: int) -> str:
    rows = [
        [number, file_names.get(one.image_id, one.image_id), one.missed, one.false]
        for number, one in enumerate(analysis.images[:most], start=1)
        if one.total
    ]
    if not rows:
        return ""
    return f"<h3>Their errors</h3>\n{_table(('', 'image', 'missed', 'false'), rows)}"
