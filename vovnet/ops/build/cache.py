"""The cache of compiled operators: find builds, and build a library once for all processes of a machine.

A library is stored in ``ROOT/vovnet/NAME-KEY/TARGETS``. The key is a hash of its sources and flags; the targets are its
GPUs or ``cpu``. A folder appears by one rename when it is complete, so readers need no lock. Builders hold a lock that
the system releases if the process dies.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vovnet.folders.home import expand_home, user_cache
from vovnet.ops.build.compiler import Build, compile_library
from vovnet.ops.build.sources import Library, Targets
from vovnet.ops.build.toolchain import BuildError, Toolchain, cuda_major
from vovnet.terminal.streams import say

SCRATCH = ".building-"
PAUSE_SECONDS = 0.2
PATIENCE_SECONDS = 120.0
"""How long the other processes of torchrun wait for local rank 0 to begin."""


def cache_root() -> Path:
    """Return the cache folder: in ``TORCH_EXTENSIONS_DIR``, or in ``torch_extensions`` in the user's cache."""
    if given := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return expand_home(given) / "vovnet"
    return user_cache() / "torch_extensions" / "vovnet"


def library_folder(library: Library, root: Path | None = None) -> Path:
    """Return the folder of all builds of the present sources and flags, in the cache or below another root.

    Raises:
        BuildError: the installed PyTorch cannot use the library.
    """
    return (root or cache_root()) / f"{library.name}-{library.key(cuda_major(library))}"


def find_builds(library: Library, root: Path | None = None) -> list[Build]:
    """Return all builds of the present sources, for any GPUs, in the cache or below another root."""
    folder = library_folder(library, root)
    try:
        entries = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []
    return [build for entry in entries if (build := Build.read(entry)) is not None]


def find_build(library: Library, capabilities: set[tuple[int, int]], root: Path | None = None) -> Build | None:
    """Return the build that supports all of these GPUs and has machine code for most of them, or None."""
    fitting = [build for build in find_builds(library, root) if all(map(build.targets.serve, capabilities))]
    own = {f"{major}.{minor}" for major, minor in capabilities}
    return max(fitting, key=lambda build: len(own & set(build.targets.binary)), default=None)


def find_exact(library: Library, targets: Targets, root: Path | None = None) -> Build | None:
    """Return the build for exactly these targets, or None."""
    return Build.read(library_folder(library, root) / str(targets))


def build_once(library: Library, targets: Targets) -> Build:
    """Return the build for exactly these targets; compile it if neither it nor another process's build exists.

    Compiling prints one line on stderr. Under torchrun, local rank 0 compiles and the others wait.

    Raises:
        BuildError: the library cannot be built.
    """
    if (build := find_exact(library, targets)) is not None:
        return build
    # Every process checks the toolchain itself, so that it fails at once instead of waiting for another process.
    Toolchain.find(library)
    folder = library_folder(library)
    with _writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "lock").touch()
    log = folder / f"failed-{targets}.log"
    if os.environ.get("LOCAL_RANK", "0") != "0" and (build := _wait_for_rank_0(library, targets, log)) is not None:
        return build
    with _lock(folder / "lock"):
        if (build := find_exact(library, targets)) is not None:
            return build
        return _build(library, targets, folder, log)


def _build(library: Library, targets: Targets, folder: Path, log: Path) -> Build:
    note = f"vovnet: compiling the operators ({library.name}) for {targets.words} into {folder}; this happens once"
    say(note)
    with _writable(folder):
        for killed in folder.glob(f"{SCRATCH}*"):  # only the holder of the lock makes such folders
            shutil.rmtree(killed, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=folder))
    try:
        with _writable(folder):
            compile_library(library, targets, scratch)
            if library_folder(library) != folder:
                raise BuildError(f"the sources in {library.folder} changed while they were compiled: build again")
            scratch.chmod(0o755)
            # The existing folder is not a complete build, or find_exact had found it.
            shutil.rmtree(folder / str(targets), ignore_errors=True)
            scratch.rename(folder / str(targets))
    except BuildError as error:
        raise BuildError(f"{error}{_keep_log(scratch, log, str(error))}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    build = find_exact(library, targets)
    if build is None:
        raise BuildError(f"{folder / str(targets)} vanished while it was built: remove nothing below {folder}")
    return build


def _keep_log(scratch: Path, log: Path, message: str) -> str:
    """Write the compilers' whole output to the log, for other processes and the user; return a note that names it."""
    try:
        output = scratch / "build.log"
        said = output.read_text(encoding="utf-8") if output.is_file() else ""
        log.write_text(f"{_launch()}\n{message}\n\n{said}", encoding="utf-8")
    except OSError:
        return ""
    return f" (full output: {log})"


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        raise BuildError(
            f"the cache folder cannot be written ({where}: {error.strerror or error}): set "
            "TORCH_EXTENSIONS_DIR to another folder"
        ) from error


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock; wait for the process that holds it."""
    import fcntl  # Linux only, as Toolchain.find has checked

    with _writable(path.parent), path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_locked(path: Path) -> bool:
    import fcntl

    with _writable(path.parent), path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _launch() -> str:
    """Return a name of this launch by torchrun, the same in all its processes, which share their parent."""
    variables = ("TORCHELASTIC_RUN_ID", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
    return " ".join([str(os.getppid()), *(os.environ.get(name, "") for name in variables)])


def _pause() -> None:
    time.sleep(PAUSE_SECONDS)


def _wait_for_rank_0(library: Library, targets: Targets, log: Path) -> Build | None:
    """Return the build of local rank 0, or None if it has not begun for a long time and this process should build.

    Raises:
        BuildError: local rank 0 has failed.
    """
    patience = time.monotonic() + PATIENCE_SECONDS
    while (build := find_exact(library, targets)) is None:
        if log.is_file():
            launch, message, *_ = [*log.read_text(encoding="utf-8").splitlines(), "", ""]
            if launch == _launch():
                raise BuildError(f"local rank 0 could not build: {message} (full output: {log})")
        if _is_locked(log.parent / "lock"):
            patience = time.monotonic() + PATIENCE_SECONDS
        elif time.monotonic() > patience:
            return None
        _pause()
    return build
