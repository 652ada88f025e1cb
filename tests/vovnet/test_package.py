"""What ``import vovnet`` does, and what it leaves alone."""

import os
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest

import vovnet


def run(code: str, repository: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()


def test_import_is_enough_and_loads_little(repository: Path) -> None:
    output = run(
        "import sys, vovnet, timm\n"
        "print(timm.is_model('vovnet39'), dir(vovnet))\n"
        "rooms = ('adapters', 'cli', 'detection', 'fusion', 'hub', 'memory', 'ops')\n"
        "print([m for m in rooms if f'vovnet.{m}' in sys.modules])\n"
        "print([m for m in ('pycocotools', 'matplotlib', 'pydantic', 'typer') if m in sys.modules])",
        repository,
    )
    public = ["VoVNet", "__version__", "fuse", "memory_efficient"]
    assert output.splitlines() == [f"True {public}", "[]", "[]"]


def test_help_shows_the_functions_that_are_imported_on_first_use() -> None:
    text = pydoc.plain(pydoc.render_doc(vovnet))
    functions = text[text.index("FUNCTIONS") : text.index("VERSION")]
    assert re.search(r"\bfuse\(\s*model", functions)  # Python 3.13 gives each argument a line
    assert re.search(r"\bmemory_efficient\(\s*model", functions)
    names = [line.split("(")[0].strip() for line in functions.splitlines() if re.match(r"    \w+\(", line)]
    assert names == ["fuse", "memory_efficient"]
    with pytest.raises(AttributeError, match="has no attribute 'melt'"):
        vovnet.melt  # noqa: B018


def test_version_without_an_install(repository: Path) -> None:
    code = (
        "import importlib.metadata as m\n"
        "real = m.version\n"
        "def version(name):\n"
        "    if name == 'vovnet': raise m.PackageNotFoundError(name)\n"
        "    return real(name)\n"
        "m.version = version\n"
        "import vovnet\n"
        "print(vovnet.__version__)"
    )
    assert run(code, repository) == "0+unknown"
