"""The table of sources in docs/reference/weights.md, generated from what the package knows.

``python tests/helpers/weights_reference.py``, run in the checkout, writes it.
"""

from __future__ import annotations

import re
from pathlib import Path

from vovnet.detection.zoo.listing import as_markdown
from vovnet.detection.zoo.sources import published_sources

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "weights.md"


def page() -> str:
    """Return docs/reference/weights.md with the table of today."""
    text = PAGE.read_text(encoding="utf-8")
    return re.sub(
        r"(<!-- weights -->\n).*?(<!-- end -->)",
        lambda match: f"{match[1]}\n{as_markdown(published_sources())}\n{match[2]}",
        text,
        flags=re.DOTALL,
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
