"""Prints the oldest versions that pyproject.toml allows. `make test-floor` installs exactly these."""

import re
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"
EXTRAS = ("dev",)  # what the tests need, with the extras that it names
# The mirror of the Hub, and the signatures of kernels, need a newer pydantic than the package. Their tests skip then.
LEFT_OUT = {"olah", "kernels"}


def floors(pyproject: Path = PYPROJECT) -> dict[str, str]:
    """The floor of every requirement of the package and of `EXTRAS`: `{"torch": "2.8", …}`."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    requirements = [*project["dependencies"], f"{project['name']}[{','.join(EXTRAS)}]"]
    found = {}
    for requirement in requirements:  # it grows while the extras that an extra names are read
        if own := re.fullmatch(rf"{project['name']}\[([\w,]+)\]", requirement):
            for extra in own[1].split(","):
                requirements += project["optional-dependencies"][extra]
            continue
        parts = re.fullmatch(r"([\w.-]+)(\[[\w,]+\])?>=([\d.]+)", requirement)
        if parts is None:
            raise ValueError(f"pyproject.toml: expected NAME>=FLOOR, got {requirement!r}")
        if parts[1] not in LEFT_OUT:
            found[parts[1] + (parts[2] or "")] = parts[3]
    return found


if __name__ == "__main__":
    for name, version in floors().items():
        print(f"{name}=={version}")
