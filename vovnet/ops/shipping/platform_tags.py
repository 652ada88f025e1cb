"""Check with auditwheel that a wheel runs where its platform tag promises."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

from vovnet.errors import InputError, install_advice
from vovnet.ops.build.toolchain import BuildError

FROM_TORCH = re.compile(r"lib(torch|torch_cpu|torch_cuda|c10|c10_cuda|cudart)\.so(\.\d+)?")
"""Libraries that PyTorch brings and has loaded before ours. They must not be copied into a wheel."""


def audit(wheel: Path, platform: str) -> str:
    """Check a wheel's libraries against a tag such as ``manylinux_2_28_x86_64``, and return what auditwheel says of it.

    Raises:
        InputError: auditwheel is not installed.
        BuildError: a library needs newer symbols than the tag allows, or a library that PyTorch does not bring.
    """
    if importlib.util.find_spec("auditwheel") is None:
        raise InputError(f"--wheel needs auditwheel: {install_advice('dev')}")
    command = [sys.executable, "-m", "auditwheel", "show", "--json", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    try:
        said = json.loads(done.stdout)
        symbols: str = said["sym_tag"]
        versions: dict[str, list[str]] = said["versioned_symbols"]
        others = sorted(name for name in said["external_libs"] if not FROM_TORCH.fullmatch(name))
    except (ValueError, KeyError, TypeError) as error:
        raise BuildError(f"auditwheel cannot read {wheel}: {(done.stdout + done.stderr).strip()[-300:]}") from error
    if others:
        raise BuildError(f"{wheel.name} needs {', '.join(others)}, which PyTorch does not bring")
    if _release(symbols) > _release(platform):
        names = ", ".join(f"{library}: {', '.join(found)}" for library, found in sorted(versions.items()))
        raise BuildError(f"{wheel.name} needs {symbols}, newer than {platform}, because of the symbols in {names}")
    return f"its symbols are those of {symbols}, or older"


def _release(tag: str) -> tuple[int, int]:
    """Return glibc's release of a tag; a tag without one counts as newer than all others."""
    match = re.match(r"manylinux_(\d+)_(\d+)_", tag)
    return (int(match[1]), int(match[2])) if match else (sys.maxsize, 0)
