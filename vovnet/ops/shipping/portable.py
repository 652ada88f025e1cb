"""Compile a library of operators for other machines: older systems, every instruction set, any later PyTorch."""

from __future__ import annotations

import platform
import sys
from dataclasses import replace
from pathlib import Path

from vovnet.ops.build.compiler import Build, compile_library
from vovnet.ops.build.sources import NAMESPACE, Library, Targets
from vovnet.ops.build.toolchain import BuildError, cuda_major
from vovnet.terminal.streams import say


def compile_portable(library: Library, targets: Targets, folder: Path, namespace: str = NAMESPACE) -> Build:
    """Compile ``library`` into ``folder``, which exists.

    Args:
        library: what is compiled.
        targets: its GPUs, or :data:`~vovnet.ops.build.sources.NO_GPU`.
        folder: where library and record are written.
        namespace: that of the operators, a C++ identifier; another one than ours lets several copies be loaded.

    Raises:
        BuildError: it cannot be compiled here, or not without warnings and with every instruction set.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        here = f"{sys.platform} on {platform.machine()}"
        raise BuildError(f"libraries for other machines are made on Linux on x86-64, this is {here}")
    say(f"vovnet: compiling the operators ({library.name}) for {targets.words} of other machines")
    build = compile_library(replace(library, portable=True, namespace=namespace), targets, folder)
    if build.left_out:
        raise BuildError(f"the C++ compiler does not know the instructions of {', '.join(build.left_out)}: update it")
    if build.warnings:
        raise BuildError(f"the build has {len(build.warnings)} warnings: {'; '.join(build.warnings[:5])}")
    return build


def add_to_root(library: Library, targets: Targets, root: Path) -> Build:
    """Compile ``library`` to where :mod:`vovnet.ops.build.prebuilt` finds it below ``root``."""
    folder = root / f"{library.name}-{library.key(cuda_major(library))}" / str(targets)
    folder.mkdir(parents=True)
    return compile_portable(library, targets, folder)
