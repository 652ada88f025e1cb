"""Mermaid's flowcharts as SVG, so that the site needs no Mermaid in the reader's browser.

Only what our pages use: arrows between names, ``id["label"]``, and one ``subgraph`` whose name is the title. Layers are
those of Sugiyama, Tagawa and Toda (https://doi.org/10.1109/TSMC.1981.4308636): the longest way from a source gives a
node its layer, a long arrow passes through a place in every layer, and the mean of its neighbours orders the places.
"""

from __future__ import annotations

import html
import itertools
import re

ARROW = re.compile(r"^\s*(\w+)(?:\[\"(.+?)\"\])? --> (\w+)(?:\[\"(.+?)\"\])?\s*$", re.MULTILINE)
WIDTH, HEIGHT, GAP, LETTER = 24, 30, 26, 7.2
Place = tuple[str, int]
"""A node, or the place of a long arrow: a name and its layer."""


def as_svg(flowchart: str) -> str:
    """Return the drawing; its colours are those of the text around it."""
    arrows: list[tuple[str, str]] = []
    labels: dict[str, str] = {}
    for upper, upper_label, lower, lower_label in ARROW.findall(flowchart):
        arrows.append((upper, lower))
        labels |= {upper: upper_label or labels.get(upper, upper), lower: lower_label or labels.get(lower, lower)}
    ways = [_way(arrow, number, _layers(arrows)) for number, arrow in enumerate(arrows)]
    rows = _ordered(ways)
    centres = _centres(rows, labels)
    title = re.search(r"subgraph (\w+)", flowchart)
    return _drawn(ways, centres, labels, title[1] if title else "imports")


def _layers(arrows: list[tuple[str, str]]) -> dict[str, int]:
    layers = dict.fromkeys(itertools.chain.from_iterable(arrows), 0)
    for _ in layers:
        for upper, lower in arrows:
            layers[lower] = max(layers[lower], layers[upper] + 1)
    return layers


def _way(arrow: tuple[str, str], number: int, layers: dict[str, int]) -> list[Place]:
    """Return the places that an arrow passes."""
    upper, lower = arrow
    between = range(layers[upper] + 1, layers[lower])
    return [(upper, layers[upper]), *((f"→{number}", layer) for layer in between), (lower, layers[lower])]


def _ordered(ways: list[list[Place]]) -> list[list[Place]]:
    """Return the layers' places in an order with few crossings."""
    rows: list[list[Place]] = [[] for _ in range(1 + max(layer for way in ways for _, layer in way))]
    for place in dict.fromkeys(itertools.chain.from_iterable(ways)):
        rows[place[1]].append(place)
    steps = [pair for way in ways for pair in itertools.pairwise(way)]
    for sweep in range(24):
        down = sweep % 2 == 0
        rank = {place: i / max(1, len(row) - 1) for row in rows for i, place in enumerate(row)}
        for row in rows if down else reversed(rows):
            means = {}
            for place in row:
                near = [upper if down else lower for upper, lower in steps if place == (lower if down else upper)]
                means[place] = sum(rank[one] for one in near) / len(near) if near else rank[place]
            row.sort(key=means.__getitem__)
            rank |= {place: i / max(1, len(row) - 1) for i, place in enumerate(row)}
    return rows


def _width(place: Place, labels: dict[str, str]) -> float:
    return len(labels[place[0]]) * LETTER + WIDTH if place[0] in labels else 6.0


def _centres(rows: list[list[Place]], labels: dict[str, str]) -> dict[Place, tuple[float, float]]:
    """Return where the middle of each place is; every layer is spread over the width of the fullest."""
    taken = [sum(_width(place, labels) for place in row) for row in rows]
    full = max(width + GAP * len(row) for width, row in zip(taken, rows, strict=True))
    centres = {}
    for number, row in enumerate(rows):
        gap, left = (full - taken[number]) / len(row), 0.0
        for place in row:
            width = _width(place, labels)
            centres[place] = (left + gap / 2 + width / 2, 20 + HEIGHT / 2 + number * (HEIGHT + 34))
            left += gap + width
    return centres


def _drawn(
    ways: list[list[Place]], centres: dict[Place, tuple[float, float]], labels: dict[str, str], title: str
) -> str:
    right = max(x + _width(place, labels) / 2 for place, (x, _) in centres.items()) + 10
    bottom = max(y for _, y in centres.values()) + HEIGHT
    parts = [
        f'<svg class="graph" viewBox="0 0 {right:.0f} {bottom:.0f}" role="img" aria-label="Imports of {title}">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="currentColor"/></marker></defs>',
    ]
    for way in ways:
        x, y = centres[way[0]]
        line = f"M{x:.0f} {y + HEIGHT / 2:.0f}"
        y += HEIGHT / 2
        for place in way[1:]:
            to, level = centres[place]
            end = level - (HEIGHT / 2 if place is way[-1] else 0)
            line += f"C{x:.0f} {(y + end) / 2:.0f} {to:.0f} {(y + end) / 2:.0f} {to:.0f} {end:.0f}"
            x, y = to, end
        parts.append(f'<path d="{line}" fill="none" stroke="currentColor" opacity=".55" marker-end="url(#tip)"/>')
    for place, (x, y) in centres.items():
        if place[0] in labels:
            width = _width(place, labels)
            parts.append(
                f'<rect x="{x - width / 2:.0f}" y="{y - HEIGHT / 2:.0f}" width="{width:.0f}" height="{HEIGHT}" rx="5"/>'
                f'<text x="{x:.0f}" y="{y + 4:.0f}">{html.escape(labels[place[0]])}</text>'
            )
    return "".join([*parts, "</svg>"])
