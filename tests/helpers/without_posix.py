"""Uses the whole package where Windows' Python would lack a module or function; run by tests/test_platforms.py.

PyTorch and the others are imported first: they are made for Windows.
"""

import fcntl
import os
import pkgutil
import signal
import sys
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

for name in (
    "huggingface_hub",
    "matplotlib.pyplot",
    "numpy",
    "pycocotools.cocoeval",
    "pydantic",
    "safetensors.torch",
    "timm",
    "torch.distributed",
    "torch.utils.data",
    "torchvision.transforms.v2",
    "tqdm",
    "typer.testing",
    "yaml",
):
    import_module(name)

MODULES = ("fcntl", "grp", "pwd", "resource", "termios")
FUNCTIONS = {
    os: (
        "fchmod",
        "fork",
        "getloadavg",
        "getpgid",
        "getpgrp",
        "getuid",
        "geteuid",
        "killpg",
        "mkfifo",
        "O_CLOEXEC",
        "O_DIRECTORY",
        "O_NOFOLLOW",
        "O_NONBLOCK",
        "register_at_fork",
        "sched_getaffinity",
        "setpgid",
        "setpgrp",
        "setsid",
        "statvfs",
        "sysconf",
        "uname",
    ),
    signal: (
        *("SIGALRM", "SIGCHLD", "SIGCONT", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGQUIT", "SIGSTOP", "SIGTSTP"),
        *("SIGUSR1", "SIGUSR2", "alarm", "pthread_sigmask", "setitimer"),
    ),
}


def hide() -> None:
    """Make this Python lack what Windows' Python lacks, and give it a stand-in for Windows' locks."""
    lockf, flags = fcntl.lockf, fcntl.LOCK_EX | fcntl.LOCK_NB

    def locking(descriptor: int, mode: int, length: int) -> None:
        lockf(descriptor, flags, length, 0, os.SEEK_CUR)

    sys.modules["msvcrt"] = SimpleNamespace(locking=locking, LK_NBLCK=2)  # type: ignore[assignment]
    for module in MODULES:
        sys.modules[module] = None  # type: ignore[assignment]
    for owner, names in FUNCTIONS.items():
        for function in names:
            if hasattr(owner, function):
                delattr(owner, function)


def use_everything(folder: Path) -> None:
    """Import every module, then train, evaluate, predict, fuse and ask for the environment."""
    import vovnet

    for module in pkgutil.walk_packages(vovnet.__path__, "vovnet."):
        if not module.name.endswith("__main__"):
            import_module(module.name)

    from vovnet.cli import app
    from vovnet.detection.data.synthetic import generate_shapes
    from vovnet.errors import run_command
    from vovnet.folders.home import user_cache
    from vovnet.ops.build import toolchain

    toolchain.sys = SimpleNamespace(platform="win32")  # type: ignore[attr-defined]
    generate_shapes(folder / "data", train=4, val=2, size=(64, 64), max_shapes=2)
    images, annotations = folder / "data" / "val", folder / "data" / "annotations" / "instances_val.json"
    source = f"[{{images: {images}, annotations: {annotations}}}]"
    run, weights = folder / "run", ["--weights", str(folder / "run")]
    for command in (
        [
            *("train", "quickstart", f"data.train={source}", f"data.val={source}", "data.workers=0"),
            *("solver.max_iterations=2", "solver.batch_size=2", "--output", str(run)),
        ],
        [
            *("evaluate", *weights, "--images", str(images), "--annotations", str(annotations), "--workers", "0"),
            *("--output", str(folder / "scores")),
        ],
        ["predict", str(next(images.iterdir())), *weights, "--fuse", "--output", str(folder / "drawn")],
        ["env"],
    ):
        try:
            run_command(app, command)
        except SystemExit as error:
            if error.code:
                raise
    for variable in ("HOME", "XDG_CACHE_HOME"):
        os.environ.pop(variable, None)
    user_cache().resolve(strict=True)


if __name__ == "__main__":
    hide()
    use_everything(Path(sys.argv[1]))
