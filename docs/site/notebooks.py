"""Pages that show a notebook: ``<!-- notebook: FILE.ipynb -->`` becomes its cells, without its first heading.

On GitHub the page only links to the notebook, which GitHub shows itself.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

MARKER = re.compile(r"^<!-- notebook: (\S+) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Return a page's text with the cells of the notebooks that it names."""
    folder = Path(str(page.file.abs_src_path)).parent
    return MARKER.sub(lambda match: _cells(folder / match[1]), markdown)


def _cells(path: Path) -> str:
    """Return a notebook's cells as Markdown."""
    cells: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join(
        f"```python\n{source}\n```" if cell["cell_type"] == "code" else source
        for cell in cells
        for source in ["".join(cell["source"])]
    )
    return re.sub(r"^# .*\n", "", text, count=1)
