"""The figures of the pages: ``python docs/site/figures.py``, run in the checkout, draws them.

SVG files with a background of their own, because GitHub shows them in light and dark pages.
"""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1]
INK, GREY, BLUE, PALE, PAPER = "#20242c", "#8a919e", "#0b6e99", "#e3eef3", "#ffffff"


def figures() -> dict[Path, str]:
    """Return the text of every figure by its file."""
    speed = DOCS / "reference" / "cpu_speed.md"
    return {
        DOCS / "explanation" / "osa_block.svg": osa_block(),
        DOCS / "reference" / "cpu_speed.svg": cpu_speed(speed.read_text(encoding="utf-8")),
    }


def osa_block() -> str:
    """Return a dense block and an OSA block: which convolution reads which maps."""
    parts = [_text(20, 30, "Dense block: every convolution reads all maps before it", bold=True)]
    parts += _chain(150)
    for target in range(1, 6):
        parts += [_arc(source, target, 150, up=True) for source in range(target - 1)]
    parts += [_arrow(_middle(5) + 36, 150, 712, 150), _box(712, 150, 84, "output", PALE)]
    parts.append(
        _text(20, 240, "OSA block: every convolution reads one map; all are aggregated once, at the end", bold=True)
    )
    parts += _chain(300)
    for source in range(6):
        x = _middle(source)
        parts.append(f'<path d="M{x} 318V352H712" fill="none" stroke="{BLUE}" stroke-width="1.6"/>')
    parts += [_arrow(690, 352, 712, 352, BLUE), _box(712, 352, 84, "concat", PALE)]
    parts += [_arrow(796, 352, 824, 352), _box(824, 352, 60, "1×1", PALE)]
    parts += [_arrow(884, 352, 916, 352), _box(916, 352, 26, "+", PAPER), _arrow(942, 352, 980, 352)]
    parts += [
        f'<path d="M{_middle(0)} 318V402H929V366" fill="none" stroke="{GREY}" stroke-dasharray="5 4" '
        'marker-end="url(#g)"/>',
        _text(330, 420, "the block's input, added in every block of a stage but the first", GREY),
    ]
    return _page(1000, 440, "Dense block and One-Shot Aggregation block", parts)


def cpu_speed(page: str) -> str:
    """Return bars with the times of the fastest other runtime, from the tables of docs/reference/cpu_speed.md."""
    rows = _fastest_others(page)
    left, unit = 330, 190
    parts = [_text(20, 30, "Time of the fastest other runtime, vovnet.fuse = 1", bold=True)]
    for number, (case, other, times) in enumerate(rows):
        y, width = 58 + 30 * number, times * unit
        colour = BLUE if times > 1 else GREY
        parts.append(_text(left - 12, y + 5, case, anchor="end"))
        parts.append(f'<rect x="{left}" y="{y - 10}" width="{width:.0f}" height="20" rx="3" fill="{colour}"/>')
        parts.append(_text(left + max(width, unit) + 8, y + 5, f"{times:.2f}  {other}"))
    bottom = 58 + 30 * len(rows)
    parts.append(f'<path d="M{left + unit} 42V{bottom - 12}" stroke="{INK}" stroke-dasharray="3 3"/>')
    parts.append(_text(left + unit, bottom + 8, "vovnet.fuse", anchor="middle"))
    return _page(1000, bottom + 24, "Times of other runtimes over those of vovnet.fuse", parts)


def _fastest_others(page: str) -> list[tuple[str, str, float]]:
    """Return case, runtime and ratio of medians of the rows in which others than eager PyTorch were measured."""
    rows = []
    for case, fastest, times in _cells(page, "| case | fastest others |", (0, 1, 2)):
        if "eager" not in fastest:
            rows.append((case, fastest.split(";")[0], float(times.split(";")[0])))
    names = ("OpenVINO", "OpenVINO, int8", "ONNX Runtime", "ONNX Runtime, int8")
    for case, *others, times in _cells(page, "| network | `vovnet.fuse` | OpenVINO |", (0, 2, 3, 4, 5, 6)):
        medians = {name: float(cell.split()[0]) for name, cell in zip(names, others, strict=True) if cell}
        network = case.replace("detector", "Faster R-CNN").replace("backbone", "VoVNet-39")
        rows.append((network, min(medians, key=lambda name: medians[name]), float(times.split(",")[0])))
    return rows


def _cells(page: str, header: str, columns: tuple[int, ...]) -> list[tuple[str, ...]]:
    """Return these columns of a page's table, without its header."""
    lines = page[page.index(header) :].splitlines()[2:]
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in _while_rows(lines)]
    return [tuple(row[column] for column in columns) for row in table]


def _while_rows(lines: list[str]) -> list[str]:
    end = next(i for i, line in enumerate(lines) if not line.startswith("|"))
    return lines[:end]


def _middle(place: int) -> int:
    return 60 + 112 * place


def _chain(y: int) -> list[str]:
    """Return an input and five convolutions, each reading the one before."""
    boxes = [_box(_middle(i) - 36, y, 72, "input" if i == 0 else "3×3", PALE if i == 0 else PAPER) for i in range(6)]
    return boxes + [_arrow(_middle(i) + 36, y, _middle(i + 1) - 36, y) for i in range(5)]


def _arc(source: int, target: int, y: int, *, up: bool) -> str:
    start, end = _middle(source) + 10, _middle(target) - 8
    height = 14 + 17 * (target - source)
    peak = y - 18 - height if up else y + 18 + height
    return (
        f'<path d="M{start} {y - 18}C{start} {peak} {end} {peak} {end} {y - 20}" fill="none" stroke="{BLUE}" '
        'stroke-width="1.4" marker-end="url(#b)"/>'
    )


def _box(x: float, y: float, width: float, label: str, fill: str) -> str:
    return f'<rect x="{x}" y="{y - 18}" width="{width}" height="36" rx="5" fill="{fill}" stroke="{INK}"/>' + _text(
        x + width / 2, y + 5, label, anchor="middle"
    )


def _arrow(x: float, y: float, to_x: float, to_y: float, colour: str = INK) -> str:
    return f'<path d="M{x} {y}L{to_x} {to_y}" stroke="{colour}" stroke-width="1.4" marker-end="url(#i)"/>'


def _text(x: float, y: float, text: str, colour: str = INK, *, bold: bool = False, anchor: str = "start") -> str:
    weight = ' font-weight="600"' if bold else ""
    plain = re.sub(r"[`*]", "", text).replace("&", "&amp;").replace("<", "&lt;")
    return f'<text x="{x:g}" y="{y:g}" fill="{colour}" text-anchor="{anchor}"{weight}>{plain}</text>'


def _page(width: int, height: int, title: str, parts: list[str]) -> str:
    tips = "".join(
        f'<marker id="{name}" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
        for name, colour in (("i", INK), ("b", BLUE), ("g", GREY))
    )
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="system-ui, sans-serif" font-size="15"><title>{title}</title><defs>{tips}</defs>'
        f'<rect width="{width}" height="{height}" rx="8" fill="{PAPER}"/>'
    )
    return "\n".join([head, *parts, "</svg>", ""])


if __name__ == "__main__":
    for path, text in figures().items():
        path.write_text(text, encoding="utf-8")
