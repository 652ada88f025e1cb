"""The code blocks of the README and of the pages in docs/, and what they say about being run.

A block in ``sh``, ``bash`` or ``python`` runs in ``tests/test_doc_blocks.py``, unless a comment right before it says
why it cannot: ``<!-- not run: needs a GPU -->``. Data (``yaml``, ``json``) is parsed. Blocks in other languages that
run somewhere else need such a comment, too. What is no code is ``text``, or has no language.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))
SHELL, PYTHON, DATA = ("sh", "bash"), ("python",), ("yaml", "json")
ELSEWHERE = ("js", "dockerfile")
"""Languages of programs that these tests cannot run."""
NO_CODE = ("", "text", "mermaid", "bibtex", "html")

MARKER = re.compile(r"^ *<!-- not run: (?P<reason>.*?) -->$", re.MULTILINE)
BLOCK = re.compile(
    r"(?:^ *<!-- not run: (?P<reason>[^\n]*?) -->\n)?"
    r"^(?P<indent> *)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    language: str
    text: str
    reason: str | None
    """Why it does not run; None if it has to."""

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"

    @property
    def runs(self) -> bool:
        return self.reason is None and self.language in SHELL + PYTHON


def blocks_of(page: Path) -> list[Block]:
    """Every fenced block of a page from the top, or every cell of a notebook."""
    if page.suffix == ".ipynb":
        return cells_of(page)
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        indent = match["indent"]
        lines = [line.removeprefix(indent) for line in match["text"].splitlines()]
        number = text.count("\n", 0, match.start("indent")) + 1
        found.append(Block(page, number, match["language"], "\n".join(lines) + "\n", match["reason"]))
    return found


def cells_of(notebook: Path) -> list[Block]:
    """The cells of a notebook that are programs: of ``!`` lines, or of Python. A tag says why one does not run."""
    found = []
    for number, cell in enumerate(json.loads(notebook.read_text(encoding="utf-8"))["cells"]):
        lines = "".join(cell["source"]).splitlines()
        if cell["cell_type"] != "code":
            continue
        tags = [tag for tag in cell["metadata"].get("tags", []) if tag.startswith("not run: ")]
        reason = tags[0].removeprefix("not run: ") if tags else None
        shell = all(line[:1] in "!%" for line in lines)
        text = "\n".join(line[1:] if shell else line for line in lines) + "\n"
        found.append(Block(notebook, number, "sh" if shell else "python", text, reason))
    return found


def markers_of(page: Path) -> int:
    """The number of comments that say why a block does not run."""
    return len(MARKER.findall(page.read_text(encoding="utf-8")))
