"""The machine and the installation: the page that ``vovnet env`` prints, and the facts that benchmarks record."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from vovnet.errors import absent_package, install_advice
from vovnet.folders.home import user_cache

_REQUIRED = ("torch", "torchvision", "timm", "huggingface-hub", "safetensors", "numpy", "pillow", "jinja2", "typer")
_DETECTION = ("pydantic", "pyyaml", "pycocotools", "matplotlib", "tqdm")
_RUNTIMES = ("onnxruntime", "openvino")
_OPTIONAL = ("tensorboard", "wandb", "mlflow", "trackio")
_NO_TORCH = "not installed: only exported files run"
_COMPILERS = ("c++", "g++", "clang++", "nvcc", "ninja")
_VARIABLES = (
    "VOVNET_OPS",
    "VOVNET_ISA",
    "VOVNET_HUB_NAMESPACE",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_HOME",
    "CXX",
    "HF_ENDPOINT",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HF_TOKEN",
    "LOCAL_RANK",
    "MKL_NUM_THREADS",
    "OMP_NUM_THREADS",
    "PYTHONPATH",
    "TORCH_EXTENSIONS_DIR",
    "TORCH_HOME",
    "WORLD_SIZE",
)
# The values of these variables are not shown.
_SECRET = ("TOKEN", "SECRET", "PASSWORD", "KEY")


def describe_machine(*packages: str) -> dict[str, str | int | None]:
    """Return the processor, the number of usable cores, and the versions of Python and of the packages."""
    return {
        "processor": _processor_name(),
        "usable cores": _usable_cores(),
        "python": platform.python_version(),
        **{package: _version(package) or "not installed" for package in packages},
    }


def checkout_commit(folder: Path | None = None) -> dict[str, str | bool] | None:
    """Return the commit of the checkout that this package runs from, or None if it runs from no checkout.

    Args:
        folder: the root of the checkout; None means where this package lies.

    Returns:
        ``commit``, the full hash, and ``changed``, true if a tracked file differs from that commit.
    """
    folder = folder or Path(__file__).resolve().parent.parent
    if not (folder / ".git").exists():  # a checkout of something else may lie further up
        return None
    commit, changes = _git(folder, "rev-parse", "HEAD"), _git(folder, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None or changes is None else {"commit": commit, "changed": bool(changes)}


def _git(folder: Path, *arguments: str) -> str | None:
    # A hook of git sets variables that lead to its own repository.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False, env=variables)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def peak_memory() -> int | None:
    """Return the most memory in bytes that this process has had, or None where the system does not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def installed_version() -> str:
    """Return the version of this package, with the commit if it runs from a checkout."""
    version, commit = _version("vovnet") or "0+unknown", checkout_commit()
    return version if commit is None else f"{version} (commit {str(commit['commit'])[:12]})"


def environment_report() -> str:
    """Return a text with versions, devices, compilers, folders, environment variables and what is missing."""
    blocks = []
    for title, rows in environment_sections().items():
        width = max((len(name) for name in rows), default=0)
        blocks.append(
            "\n".join([f"[{title}]", *(f"  {name:{width}}  {value}".rstrip() for name, value in rows.items())])
        )
    return "\n".join(blocks)


def environment_sections() -> dict[str, dict[str, str]]:
    """Return what :func:`environment_report` says: titles of sections to names and values.

    This never fails: a section that does says why. Values of tokens are not shown.
    """
    sections = (
        ("versions", _versions),
        ("machine", _machine),
        ("torch", _torch),
        ("compilers", _compilers),
        ("operators", _operators),
        ("folders", _folders),
        ("environment variables", _variables),
        ("missing", _missing),
    )
    found = {}
    for title, section in sections:
        try:
            rows = section()
        except Exception as error:
            # The report must also work in a broken installation.
            rows = [("failed", _line(error))]
        found[title] = dict(rows)
    return found


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _versions() -> list[tuple[str, str]]:
    ours = _version("vovnet")
    place = Path(__file__).resolve().parent
    rows = [("vovnet", f"{ours or 'not installed'} (running from {place})"), ("python", platform.python_version())]
    return rows + [(name, _version(name) or "missing") for name in (*_REQUIRED, *_DETECTION, *_RUNTIMES, *_OPTIONAL)]


def _machine() -> list[tuple[str, str]]:
    rows = [("platform", platform.platform()), ("processor", _processor_name())]
    rows.append(("CPU cores", f"{_usable_cores()} usable of {os.cpu_count()}"))
    if memory := _memory():
        rows.append(("memory", memory))
    return rows


def _usable_cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _processor_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> str | None:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
    text = f"{total / 2**30:.1f} GiB"
    # A container may allow less than the machine has (cgroup v2).
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit.isdigit() and int(limit) < total:
            text += f", {int(limit) / 2**30:.1f} GiB allowed here"
    except OSError:
        pass
    return text


def _torch() -> list[tuple[str, str]]:
    if absent_package("torch"):
        return [("torch", _NO_TORCH)]
    import torch

    rows = [
        ("instruction set", torch.backends.cpu.get_cpu_capability()),
        ("threads", f"{torch.get_num_threads()} in an operator, {torch.get_num_interop_threads()} between"),
        ("built for CUDA", torch.version.cuda or "no"),
    ]
    if torch.backends.mps.is_available():
        rows.append(("mps", "a Mac's GPU, used with --device mps"))
    if not torch.cuda.is_available():
        return rows if torch.backends.mps.is_available() else [*rows, ("GPUs", "none usable")]
    rows.append(("cuDNN", str(torch.backends.cudnn.version())))
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        rows.append(
            (f"cuda:{index}", f"{gpu.name}, {gpu.total_memory / 2**30:.1f} GiB, capability {gpu.major}.{gpu.minor}")
        )
    return rows


def _compilers() -> list[tuple[str, str]]:
    rows = []
    for name in _COMPILERS:
        path = shutil.which(name)
        rows.append((name, "not found" if path is None else f"{_first_version_line(path)} ({path})"))
    return rows


def _first_version_line(path: str) -> str:
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, errors="replace", timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return _line(error)
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    # nvcc prints its release in the fourth line.
    return next((line for line in lines if "release" in line), lines[0] if lines else "no version")


def _folders() -> list[tuple[str, str]]:
    cache = user_cache()
    hub = os.environ.get("HF_HUB_CACHE") or os.path.join(os.environ.get("HF_HOME") or cache / "huggingface", "hub")
    torch_home = os.environ.get("TORCH_HOME") or str(cache / "torch")
    rows = [("Hub downloads", hub), ("torch downloads", torch_home)]
    return [(name, f"{path}{'' if os.path.isdir(path) else ' (not there yet)'}") for name, path in rows]


def _operators() -> list[tuple[str, str]]:
    if absent_package("torch"):
        return [("torch", _NO_TORCH)]
    from vovnet.ops.build import loader

    return loader.state()


def _variables() -> list[tuple[str, str]]:
    rows = []
    for name in _VARIABLES:
        if name in os.environ:
            secret = any(word in name for word in _SECRET)
            # A URL may hold a name and a password.
            value = re.sub(r"//[^/@]*@", "//***@", os.environ[name])
            rows.append((name, "set (not shown)" if secret else value))
    return rows or [("none", "")]


def _has_kernels() -> bool:
    """True if kernels for the CPU are installed ready-made, so that no compiler is needed."""
    try:
        from vovnet.ops.build.prebuilt import find_prebuilt
        from vovnet.ops.build.sources import CPU

        return find_prebuilt(CPU) is not None
    except Exception:
        return False  # a broken torch, which another section reports, or one that is too old


def _missing() -> list[tuple[str, str]]:
    rows = []
    for packages, mend in (
        (_REQUIRED, "networks and detectors need it: pip install {}"),
        (_DETECTION, f"training and evaluation need it: {install_advice('detection')}"),
        (_RUNTIMES, "only to run exported files: pip install {}"),
        (_OPTIONAL, "only to log runs to it (log.loggers): pip install {}"),
    ):
        rows += [(name, mend.format(name)) for name in packages if _version(name) is None]
    if not _has_kernels() and not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        rows.append(("C++ compiler", "without it operators run as plain torch: apt install g++, or the like"))
    return rows or [("nothing", "")]
