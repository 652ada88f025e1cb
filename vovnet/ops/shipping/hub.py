"""The layout that Hugging Face's ``kernels`` loads: a folder ``build/VARIANT`` for each backend.

A variant ``torch-stable-abi211-cpu-x86_64-linux`` fits PyTorch 2.11 and every later release. Its operators are in a
namespace of its own, as ``kernels`` asks, so it can be loaded beside this package and beside other versions.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from vovnet.errors import SOURCE, InputError
from vovnet.folders.temporary import scratch_folder
from vovnet.ops.build.compiler import RECORD
from vovnet.ops.build.sources import CPU, CUDA, NO_GPU, Library, Targets
from vovnet.ops.build.toolchain import BuildError, CudaToolkit, cuda_major
from vovnet.ops.inference import SCHEMAS
from vovnet.ops.shipping import kernel_cpu, kernel_cuda
from vovnet.ops.shipping.portable import compile_portable

VERSION = 0
"""The version of the functions of the variants. ``kernels`` reserves 0 for those that may still change."""


def write_variants(out: Path, cuda: Targets | None = None) -> list[Path]:
    """Write ``out/build/VARIANT`` for the CPU and, with ``cuda``, for these GPUs. Existing variants are replaced.

    Returns:
        The folders of the variants.

    Raises:
        InputError: ``out`` is a file.
        BuildError: a library cannot be compiled.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--kernels {out}: expected a folder, got a file")
    done = [_write(out, CPU, NO_GPU, "cpu", {"type": "cpu"}, Path(kernel_cpu.__file__), SCHEMAS)]
    if cuda is not None:
        ptx = {cuda.ptx} if cuda.ptx else set()
        archs = [f"{arch}+PTX" if arch in ptx else arch for arch in cuda.binary]
        archs += [f"{arch}+PTX" for arch in sorted(ptx - set(cuda.binary))]
        backend: dict[str, object] = {"type": "cuda", "archs": archs}
        done.append(_write(out, CUDA, cuda, _cuda_release(), backend, Path(kernel_cuda.__file__), ()))
    return done


def _write(
    out: Path,
    library: Library,
    targets: Targets,
    backend: str,
    described: dict[str, object],
    module: Path,
    schemas: Sequence[str],
) -> Path:
    """Write the variant of one library. It appears at its place when it is complete."""
    key = library.key(cuda_major(library))
    identity = f"_vovnet_{library.name}_{key[:8]}"
    name = f"torch-stable-abi{library.torch[0]}{library.torch[1]}-{backend}-x86_64-linux"
    place = out / "build" / name
    place.parent.mkdir(parents=True, exist_ok=True)
    with scratch_folder(place.parent) as scratch:
        made = scratch / name
        made.mkdir()
        compile_portable(library, targets, made, identity)
        (made / RECORD).unlink()
        shutil.copyfile(module, made / "__init__.py")
        if schemas:
            (made / "schemas.json").write_text(json.dumps(schemas, indent=1) + "\n", encoding="utf-8")
        metadata = {
            "id": identity,
            "name": "vovnet",
            "version": VERSION,
            "license": "Apache-2.0",
            "upstream": SOURCE,
            "python-depends": [],
            "backend": described,
            "digest": {"algorithm": "sha256", "files": {path.name: _digest(path) for path in sorted(made.iterdir())}},
        }
        (made / "metadata.json").write_text(json.dumps(metadata, indent=1) + "\n", encoding="utf-8")
        if place.exists():
            shutil.rmtree(place)
        made.rename(place)
    return place


def _digest(path: Path) -> str:
    return base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()


def _cuda_release() -> str:
    """Return nvcc's release as variants name it: ``"cu130"``. Each fits CUDA of the same major and any later minor."""
    major = cuda_major(CUDA)
    if major is None:
        raise BuildError("the CUDA operators have no CUDA sources")
    nvcc = CudaToolkit.find(major).nvcc
    said = subprocess.run([nvcc, "--version"], capture_output=True, text=True, errors="replace", check=False).stdout
    release = re.search(r"release (\d+)\.(\d+)", said)
    if release is None:
        raise BuildError(f"{nvcc} --version has an unknown form: install the CUDA toolkit {major}.x anew")
    return f"cu{release[1]}{release[2]}"
