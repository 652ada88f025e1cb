"""What a visitor sees of the detections, as HTML that holds everything: drawings, counts, and tables to download."""

from __future__ import annotations

import base64
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from vovnet.detection.demo.session import Found, Session, SessionImage
from vovnet.results.drawing import draw_detections
from vovnet.results.lettering import category_colour
from vovnet.results.skeletons import skeletons_of
from vovnet.results.tables import DetectedImage, csv_tables
from vovnet.results.thresholds import Thresholds
from vovnet.results.writing import FileDetector

_QUALITY = 90


@dataclass(frozen=True)
class Look:
    """What is drawn."""

    threshold: float = 0.5
    """Detections with a lower score are neither drawn nor counted."""
    boxes: bool = True
    masks: bool = True
    keypoints: bool = True
    labels: bool = True


def results_html(session: Session, detectors: Mapping[str, FileDetector], names: Sequence[str], look: Look) -> str:
    """Return the results of a session: nothing runs but the drawing.

    Args:
        session: each of its images has been seen by each of the named detectors.
        detectors: by name.
        names: of those that are shown, side by side.
        look: what is drawn.
    """
    images = session.images
    if not images:
        return ""
    parts = [_summary(images, names, look), _counts_table(images, names, look)]
    parts.append(_downloads(images, detectors, names, look))
    sections = "".join(_section(image, detectors, names, look) for image in images)
    kind = "vovnet-pairs" if len(names) > 1 else "vovnet-images"
    return f'<div class="vovnet-results">{"".join(parts)}<div class="{kind}">{sections}</div></div>'


def messages_html(messages: Sequence[str]) -> str:
    """Return messages about what could not be done; nothing if there are none."""
    lines = "".join(f"<p>{escape(one)}</p>" for one in messages)
    return f'<div class="vovnet-messages" role="alert">{lines}</div>' if lines else ""


def progress_html(line: str) -> str:
    """Return a line that tells what is being done."""
    return f'<p class="vovnet-progress" role="status">{escape(line)}</p>'


def _objects(count: int) -> str:
    return "1 object" if count == 1 else f"{count} objects"


def _shown(found: Found, look: Look) -> list[dict[str, Any]]:
    return [one for one in found.entries if one["score"] >= look.threshold]


def _summary(images: Sequence[SessionImage], names: Sequence[str], look: Look) -> str:
    totals = [sum(len(_shown(image.found[name], look)) for image in images) for name in names]
    where = "1 image" if len(images) == 1 else f"{len(images)} images"
    if len(names) == 1:
        return f'<p class="vovnet-total"><strong>{_objects(totals[0])}</strong> in {where}</p>'
    each = ", ".join(
        f"{escape(name)}: <strong>{_objects(total)}</strong>" for name, total in zip(names, totals, strict=True)
    )
    return f'<p class="vovnet-total">{each}, in {where}</p>'


def _counts_table(images: Sequence[SessionImage], names: Sequence[str], look: Look) -> str:
    """Return a row for each category that some detector found, the most frequent first."""
    counts = [
        Counter(
            (str(one["category"]), int(one["category_id"]))
            for image in images
            for one in _shown(image.found[name], look)
        )
        for name in names
    ]
    rows = sorted({key for count in counts for key in count}, key=lambda key: (-max(one[key] for one in counts), key))
    if not rows:
        return '<p class="vovnet-none">Nothing has a score from the threshold on.</p>'
    heads = "".join(f'<th scope="col">{escape(name) if len(names) > 1 else "Count"}</th>' for name in names)
    lines = "".join(
        f'<tr><th scope="row"><span class="vovnet-dot" style="background:rgb{category_colour(number)}"></span>'
        f"{escape(category)}</th>{''.join(f'<td>{one[category, number]}</td>' for one in counts)}</tr>"
        for category, number in rows
    )
    return (
        '<table class="vovnet-counts"><thead><tr><th scope="col">Category</th>'
        f"{heads}</tr></thead><tbody>{lines}</tbody></table>"
    )


def _downloads(
    images: Sequence[SessionImage], detectors: Mapping[str, FileDetector], names: Sequence[str], look: Look
) -> str:
    """Return links to the tables of ``vovnet predict``, which are in the links themselves."""
    links = []
    for name in names:
        detected = [DetectedImage(Path(image.name), image.name, image.found[name].detections) for image in images]
        for file, text in csv_tables(detected, detectors[name].categories, Thresholds(look.threshold)).items():
            data = base64.b64encode(text.encode("utf-8", "backslashreplace")).decode()
            words = file if len(names) == 1 else f"{name}: {file}"
            own = file if len(names) == 1 else f"{Path(file).stem}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', name)}.csv"
            links.append(
                f'<a class="vovnet-download" download="{own}" href="data:text/csv;charset=utf-8;base64,{data}">'
                f"{escape(words)}</a>"
            )
    return f'<p class="vovnet-downloads"><span>Download:</span> {" ".join(links)}</p>'


def _section(image: SessionImage, detectors: Mapping[str, FileDetector], names: Sequence[str], look: Look) -> str:
    figures = "".join(_figure(image, name, detectors[name], len(names) > 1, look) for name in names)
    return f'<section><h3>{escape(image.name)}</h3><div class="vovnet-pair">{figures}</div></section>'


def _figure(image: SessionImage, name: str, detector: FileDetector, named: bool, look: Look) -> str:
    found = image.found[name]
    counts = Counter(str(one["category"]) for one in _shown(found, look))
    words = ", ".join(f"{count} × {category}" for category, count in counts.most_common()) or "nothing"
    more = f" (the limit of {detector.limits.detections} detections is reached: there may be more)"
    caption = f"{f'{name}: ' if named else ''}{words}{more if found.limit_reached else ''}"
    return (
        f'<figure><img alt="{escape(f"{image.name} with {words}")}" src="{drawing(image, found, detector, look)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def drawing(image: SessionImage, found: Found, detector: FileDetector, look: Look) -> str:
    """Return the drawing of an image as the address of its own data."""
    left_out = {name for name, kept in (("segmentation", look.masks), ("keypoints", look.keypoints)) if not kept}
    entries = [{key: value for key, value in one.items() if key not in left_out} for one in _shown(found, look)]
    drawn = draw_detections(
        Image.open(io.BytesIO(image.shown)),
        entries,
        look.threshold,
        labels="auto" if look.labels else "none",
        skeletons=skeletons_of(detector.categories or []),
        boxes=look.boxes,
    )
    file = io.BytesIO()
    drawn.save(file, "JPEG", quality=_QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
