"""An environment for processes in which only some distributions and what they require can be imported."""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

_SITE = """
import sys
from importlib.machinery import PathFinder

HIDDEN = {names!r}


class Visible:
    find_distributions = PathFinder.find_distributions
    invalidate_caches = PathFinder.invalidate_caches

    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.partition(".")[0] in HIDDEN else PathFinder.find_spec(name, path, target)


sys.meta_path = [Visible if finder is PathFinder else finder for finder in sys.meta_path]
"""


def hide_all_but(folder: Path, *distributions: str) -> None:
    """Write ``sitecustomize.py``: processes with ``folder`` on their PYTHONPATH find no other distribution but ours."""
    kept = _closure(distributions)
    owners = metadata.packages_distributions()
    kept.add("vovnet")  # from the checkout, installed or not
    hidden = {name for name, of in owners.items() if not {_normal(one) for one in of} & kept}
    (folder / "sitecustomize.py").write_text(_SITE.format(names=hidden), encoding="utf-8")


def _closure(distributions: tuple[str, ...]) -> set[str]:
    """Return the normal names of distributions and of what they require, without extras."""
    found: set[str] = set()
    waiting = [_normal(name) for name in distributions]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        try:
            required = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # for another system
            continue
        found.add(name)
        waiting += [_normal(re.split(r"[^\w.-]", line)[0]) for line in required if "extra ==" not in line]
    return found


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
