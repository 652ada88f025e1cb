"""The folder of compiled operators: what is built, and building what is not, once for all processes of a machine.

A library stands in ``ROOT/vovnet/NAME-KEY/TARGETS``: the key names its sources and flags, the targets its GPUs, or the
CPU. A folder appears by one rename when it is complete, so a reader needs no lock; builders take turns by a lock that
the system takes back from a process that dies.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vovnet.ops.build.compiler import Build, compile_library
from vovnet.ops.build.sources import Library, Targets
from vovnet.ops.build.toolchain import BuildError, Toolchain, cuda_major

PAUSE_SECONDS = 0.2
PATIENCE_SECONDS = 120.0
"""How long the other processes of a torchrun wait for local rank 0 to begin."""


def cache_root() -> Path:
    """Where extensions of Torch are built: ``TORCH_EXTENSIONS_DIR``, or ``torch_extensions`` in the user's cache."""
    if given := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(given).expanduser() / "vovnet"
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "torch_extensions" / "vovnet"


def library_folder(library: Library) -> Path:
    """The folder of all builds of the present sources and flags.

    Raises:
        BuildError: when the installed Torch can have none.
    """
    return cache_root() / f"{library.name}-{library.key(cuda_major(library))}"


def find_builds(library: Library) -> list[Build]:
    """What is built of the present sources, for whichever GPUs."""
    folder = library_folder(library)
    try:
        entries = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []
    return [build for entry in entries if (build := Build.read(entry)) is not None]


def find_build(library: Library, capabilities: set[tuple[int, int]]) -> Build | None:
    """A build that serves all of these GPUs, the one with most machine code of their own; None where there is none."""
    fitting = [build for build in find_builds(library) if all(map(build.targets.serve, capabilities))]
    own = {f"{major}.{minor}" for major, minor in capabilities}
    return max(fitting, key=lambda build: len(own & set(build.targets.binary)), default=None)


def find_exact(library: Library, targets: Targets) -> Build | None:
    """The build for exactly these targets; None where there is none."""
    return Build.read(library_folder(library) / str(targets))


def build_once(library: Library, targets: Targets) -> Build:
    """The build for exactly these targets, compiled unless it stands there or another process is at it.

    Says so in one line on stderr when it compiles. Under torchrun, local rank 0 compiles and the others wait.

    Raises:
        BuildError: when it cannot be built.
    """
    if (build := find_exact(library, targets)) is not None:
        return build
    # Whatever can be known at once is every process's own error, rather than a wait for another's.
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
    print(
        f"vovnet: compiling the operators ({library.name}) for {targets.words} into {folder}; this happens once",
        file=sys.stderr,
        flush=True,
    )
    with _writable(folder):
        scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=folder))
    try:
        with _writable(folder):
            compile_library(library, targets, scratch)
            if library_folder(library) != folder:
                raise BuildError(f"the sources in {library.folder} changed while they were compiled: build again")
            scratch.chmod(0o755)
            # What stands there is no build, or it would have been found: half of one, say, that somebody copied.
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
    """Leave the compilers' whole output where the other processes and the user find it; name the place."""
    try:
        output = scratch / "build.log"
        said = output.read_text(encoding="utf-8") if output.is_file() else ""
        log.write_text(f"{_launch()}\n{message}\n\n{said}", encoding="utf-8")
    except OSError:
        return ""
    return f" (all of it: {log})"


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        where = error.filename or folder
        raise BuildError(
            f"the cache folder cannot be written ({where}: {error.strerror or error}): name another in "
            "TORCH_EXTENSIONS_DIR"
        ) from error


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the lock; waits for whoever holds it."""
    import fcntl  # Linux, as Toolchain.find has made sure

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
    """Names one start of all processes by torchrun: they share the agent that is their parent."""
    variables = ("TORCHELASTIC_RUN_ID", "MASTER_PORT", "TORCHELASTIC_RESTART_COUNT")
    return " ".join([str(os.getppid()), *(os.environ.get(name, "") for name in variables)])


def _pause() -> None:
    time.sleep(PAUSE_SECONDS)


def _wait_for_rank_0(library: Library, targets: Targets, log: Path) -> Build | None:
    """What local rank 0 has built; None when it has not begun after a long while and somebody else should.

    Raises:
        BuildError: when local rank 0 has failed.
    """
    patience = time.monotonic() + PATIENCE_SECONDS
    while (build := find_exact(library, targets)) is None:
        if log.is_file():
            launch, message, *_ = [*log.read_text(encoding="utf-8").splitlines(), "", ""]
            if launch == _launch():
                raise BuildError(f"local rank 0 could not build: {message} (all of it: {log})")
        if _is_locked(log.parent / "lock"):
            patience = time.monotonic() + PATIENCE_SECONDS
        elif time.monotonic() > patience:
            return None
        _pause()
    return build
