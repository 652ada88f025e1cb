"""torchrun restarts a run whose processes or machines die, and ``resume="auto"`` carries it to the same end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import lines_of

ROOT = Path(__file__).resolve().parents[3]
ITERATIONS = 10


def torchrun(log: Path, *arguments: object, **environment: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(
            list(map(str, [sys.executable, "-m", "torch.distributed.run", *arguments])),
            env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
            | environment,
            stdout=file,
            stderr=file,
        )


def finish(process: subprocess.Popen[bytes], log: Path) -> None:
    try:
        assert process.wait(timeout=900) == 0, log.read_text()
    finally:
        process.kill()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def script(output: Path, *more: object) -> tuple[object, ...]:
    return (ROOT / "tests" / "helpers" / "elastic_run.py", output, ITERATIONS, *more)


def one_machine(output: Path, *more: object) -> None:
    where = ("--nproc-per-node", 2, "--max-restarts", 3, "--master-addr", "127.0.0.1", "--master-port", free_port())
    log = output.with_suffix(".log")
    finish(torchrun(log, *where, *script(output, *more)), log)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("unbroken") / "run"
    one_machine(run)
    return run


def same(run: Path, unbroken: Path) -> None:
    assert lines_of(run) == lines_of(unbroken)
    weights, expected = load_file(run / "model.safetensors"), load_file(unbroken / "model.safetensors")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in weights.items())
    assert sorted(path.name for path in run.iterdir()) == sorted(path.name for path in unbroken.iterdir())


@pytest.mark.slow
def test_killed_processes_are_started_again_and_the_run_ends_as_if_nothing_had_happened(
    unbroken: Path, tmp_path: Path
) -> None:
    """One dies before the first checkpoint, one in the middle, and rank 0 after it."""
    deaths = ["1:4", "1:13", "0:7"]
    one_machine(tmp_path / "run", tmp_path, *deaths)
    assert all((tmp_path / death).exists() for death in deaths)
    same(tmp_path / "run", unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["a", "b"])
def test_a_machine_is_lost_and_comes_back(unbroken: Path, tmp_path: Path, first: str) -> None:
    """Machine ``a`` holds torchrun's store and stays. The one with the lower process id becomes rank 0."""
    address = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{free_port()}", "--rdzv-id", "run")
    command = ("--nnodes", 2, "--nproc-per-node", 1, "--max-restarts", 3, *address)

    def start(machine: str, log: str) -> subprocess.Popen[bytes]:
        hosting = ("--rdzv-conf", f"is_host={int(machine == 'a')}")
        run = script(tmp_path / "run", tmp_path, "b:13")
        # Otherwise a machine that comes back waits for an address that rank 0 gives in the first round only.
        settings = {"MACHINE": machine, "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
        return torchrun(tmp_path / log, *command, *hosting, *run, **settings)

    machines = {machine: start(machine, f"{machine}.log") for machine in (first, "ab".replace(first, ""))}
    assert machines["b"].wait(timeout=900) == -signal.SIGKILL, (tmp_path / "b.log").read_text()
    assert (tmp_path / "b:13").exists()
    back = start("b", "back.log")
    finish(machines["a"], tmp_path / "a.log")
    finish(back, tmp_path / "back.log")
    same(tmp_path / "run", unbroken)
