"""The wheels with compiled operators: ours for Linux on x86-64, and ``vovnet-cuda13`` with the kernels for GPUs.

Both need no particular Python: the operators use PyTorch's stable C++ interface, and Python loads them through PyTorch.
"""

from __future__ import annotations

import re
import tempfile
from email.parser import BytesParser
from pathlib import Path

from vovnet.errors import InputError
from vovnet.ops.build.prebuilt import IN_THE_WHEEL, distribution_for
from vovnet.ops.build.sources import CPU, CSRC, CUDA, NO_GPU, Targets
from vovnet.ops.build.toolchain import BuildError, cuda_major
from vovnet.ops.shipping.archive import read_wheel, write_wheel
from vovnet.ops.shipping.platform_tags import audit
from vovnet.ops.shipping.portable import add_to_root

PLATFORM = "manylinux_2_28_x86_64"
PURE = "py3-none-any"
PACKAGE = CSRC.parents[1]

_WHEEL = f"""Wheel-Version: 1.0
Generator: vovnet
Root-Is-Purelib: false
Tag: py3-none-{PLATFORM}
"""


def write_cpu_wheel(folder: Path) -> tuple[Path, str]:
    """Write our wheel with the operators for the CPU beside the pure one in ``folder``.

    Returns:
        The path of the wheel, and what auditwheel says of it.

    Raises:
        InputError: ``folder`` has not exactly one pure wheel, or one of other sources than those that are compiled.
        BuildError: the operators cannot be compiled, or the wheel would not run on older systems.
    """
    pure = find_pure_wheel(folder)
    files = read_wheel(pure)
    _check_sources(pure, files)
    place = f"vovnet/{IN_THE_WHEEL.relative_to(PACKAGE).as_posix()}"
    with tempfile.TemporaryDirectory() as root:
        add_to_root(CPU, NO_GPU, Path(root))
        files |= _files_below(Path(root), place)
    files[f"{_info_of(files)}/WHEEL"] = _WHEEL.encode()
    return _write_audited(pure.with_name(pure.name.replace(PURE, f"py3-none-{PLATFORM}")), files)


def write_cuda_wheel(folder: Path, targets: Targets) -> tuple[Path, str]:
    """Write the wheel with the kernels for GPUs into ``folder``.

    Its version is that of the pure wheel in ``folder``, and it needs exactly that version of ours.

    Returns:
        The path of the wheel, and what auditwheel says of it.

    Raises:
        InputError: ``folder`` has not exactly one pure wheel, or one of other sources than those that are compiled.
        BuildError: the kernels cannot be compiled, or the wheel would not run on older systems.
    """
    major = cuda_major(CUDA)
    if major is None:
        raise BuildError("the installed PyTorch is built without CUDA: install one with CUDA (https://pytorch.org)")
    pure = find_pure_wheel(folder)
    ours = read_wheel(pure)
    _check_sources(pure, ours)
    info = _info_of(ours)
    described = BytesParser().parsebytes(ours[f"{info}/METADATA"])
    name, version = distribution_for(major), str(described["Version"])
    package = name.replace("-", "_")
    own = f"{package}-{version}.dist-info"
    licences = {path: content for path, content in ours.items() if path.startswith(f"{info}/licenses/")}
    files = {path.replace(info, own): content for path, content in licences.items()}
    with tempfile.TemporaryDirectory() as root:
        build = add_to_root(CUDA, targets, Path(root))
        summary = f"The kernels of vovnet for CUDA {major}, compiled for {build.targets.words}"
        files |= _files_below(Path(root), package)
    files[f"{package}/__init__.py"] = f'"""{summary}."""\n'.encode()
    names = sorted(path.rpartition("/")[2] for path in licences)
    files[f"{own}/METADATA"] = _metadata(name, version, summary, names, str(described["Requires-Python"])).encode()
    files[f"{own}/WHEEL"] = _WHEEL.encode()
    return _write_audited(folder / f"{package}-{version}-py3-none-{PLATFORM}.whl", files)


def find_pure_wheel(folder: Path) -> Path:
    """Return the one wheel ``vovnet-*-py3-none-any.whl`` of a folder, or raise an InputError."""
    found = sorted(folder.glob(f"vovnet-*-{PURE}.whl"))
    if len(found) != 1:
        names = ", ".join(path.name for path in found) or "none"
        raise InputError(
            f"--wheel {folder}: expected a folder with one vovnet-*-{PURE}.whl, found {names}: make wheel builds it"
        )
    return found[0]


def _write_audited(path: Path, files: dict[str, bytes]) -> tuple[Path, str]:
    """Write a wheel; one that its tag does not fit is removed again."""
    write_wheel(path, files)
    try:
        return path, audit(path, PLATFORM)
    except BaseException:
        path.unlink()
        raise


def _check_sources(wheel: Path, files: dict[str, bytes]) -> None:
    """Check that a wheel has the sources that will be compiled; otherwise it would not take the library."""
    for path in sorted(CSRC.rglob("*")):
        if path.is_file() and files.get(f"vovnet/{path.relative_to(PACKAGE).as_posix()}") != path.read_bytes():
            raise InputError(f"--wheel {wheel}: expected a wheel of these sources, but {path} differs: build it again")


def _files_below(root: Path, place: str) -> dict[str, bytes]:
    found = sorted(path for path in root.rglob("*") if path.is_file())
    return {f"{place}/{path.relative_to(root).as_posix()}": path.read_bytes() for path in found}


def _info_of(files: dict[str, bytes]) -> str:
    """Return the name of the folder ``*.dist-info``."""
    return next(match[1] for name in files if (match := re.fullmatch(r"([^/]+\.dist-info)/WHEEL", name)))


def _metadata(name: str, version: str, summary: str, licences: list[str], python: str) -> str:
    rows = [
        "Metadata-Version: 2.4",
        f"Name: {name}",
        f"Version: {version}",
        f"Summary: {summary}",
        "License-Expression: Apache-2.0",
        *(f"License-File: {licence}" for licence in licences),
        f"Requires-Python: {python}",
        f"Requires-Dist: vovnet=={version}",
    ]
    return "\n".join(rows) + "\n\nIt needs no nvcc. vovnet finds the kernels when a model runs on a GPU.\n"
