"""What ``import vovnet`` does, and what it leaves alone."""

import os
import subprocess
import sys
from pathlib import Path


def run(code: str, repository: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(repository)}
    command = [sys.executable, "-W", "error::UserWarning", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.strip()


def test_import_is_enough_and_lean(repository: Path) -> None:
    output = run(
        "import sys, vovnet, timm\n"
        "print(timm.is_model('vovnet39'), sorted(m for m in sys.modules if m.startswith('vovnet.')))\n"
        "print([m for m in ('pycocotools', 'matplotlib', 'pydantic', 'typer') if m in sys.modules])",
        repository,
    )
    names = "arguments checkpoint_file downloads errors files licences pretrained vovnet vovnet_v2"
    modules = [f"vovnet.{name}" for name in names.split()]
    assert output.splitlines() == [f"True {modules}", "[]"]


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
