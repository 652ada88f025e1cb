"""``torchrun … -m vovnet.detection.train``: two processes over gloo, one run, each image evaluated once.

Processes that die, freeze, or take long, end the run or do not, as they should.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from PIL import Image, ImageDraw
from tiny_runs import lines_of, losses_of

from tests.helpers.processes import killed
from vovnet.detection import distributed, evaluate
from vovnet.detection.checkpoints.folder import load_detector
from vovnet.detection.config.sources import DataSource
from vovnet.detection.data.coco import CocoDataset

REPOSITORY = Path(__file__).resolve().parents[2]
PROCESSES = 2
IMAGES = 5
"""Odd, so that one process has an image less than the other, where padding would count one twice."""
ITERATIONS = 4

# Options that need care in several processes are on: accumulation, autocast, what draws random numbers for a sample.
RECIPE = """
model:
  backbone: vovnet27_slim
  fpn_channels: 8
  min_size: 64
  max_size: 64
  box_representation_size: 16
  box_score_thresh: 0.0
  box_batch_size_per_image: 8
  rpn_pre_nms_top_n_train: 50
  rpn_post_nms_top_n_train: 20
  rpn_pre_nms_top_n_test: 200
  rpn_post_nms_top_n_test: 100
data:
  train: [{{images: '{root}', annotations: '{root}/instances.json'}}]
  val: [{{images: '{root}', annotations: '{root}/instances.json'}}]
  train_min_sizes: [56, 64]
  train_max_size: 64
  workers: 0
  mosaic: 0.5
  mosaic_off: 0
  repeat_threshold: 0.5
solver:
  optimizer: adamw
  layer_decay: 0.9
  accumulate: 2
  amp: bf16
  clip_grad_norm: 10
  box_loss: focal
  class_weights: {{square: 2}}
  base_lr: 0.002
  batch_size: 4
  reference_batch_size: 2
  max_iterations: {iterations}
  steps: []
  warmup_iterations: 1
  ema: 0.5
log: {{log_every: 1, evaluate_every: 0, checkpoint_every: 100, validation_losses: true}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def torchrun(*arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Train in two processes; a run that hangs fails by its time limit."""
    port = free_port()
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node", PROCESSES, "--master-addr", "127.0.0.1"]
    return subprocess.run(
        list(map(str, [sys.executable, *launcher, "--master-port", port, "-m", "vovnet.detection.train", *arguments])),
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("workplace")
    images, annotations = [], []
    for number in range(IMAGES):
        left, top = 2 + 4 * number, 14 - 2 * number
        image = Image.new("RGB", (64, 64), (30, 40, 60))
        ImageDraw.Draw(image).rectangle((left, top, left + 39, top + 39), fill=(220, 200, 20 * number))
        image.save(root / f"{number}.png")
        images.append({"id": 40 + number, "file_name": f"{number}.png", "width": 64, "height": 64})
        box = {"bbox": [left, top, 40, 40], "area": 1600, "iscrowd": 0}
        annotations.append({"id": number + 1, "image_id": 40 + number, "category_id": 7, **box})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 7, "name": "square"}]}
    (root / "instances.json").write_text(json.dumps(content))
    for iterations in (ITERATIONS // 2, ITERATIONS):
        (root / f"{iterations}.yaml").write_text(RECIPE.format(root=root, iterations=iterations))
    return root


@pytest.fixture(scope="module")
def finished(workplace: Path) -> tuple[Path, subprocess.CompletedProcess[str]]:
    run = workplace / "run"
    done = torchrun(workplace / f"{ITERATIONS}.yaml", "--output", run)
    assert done.returncode == 0, done.stderr
    return run, done


def test_two_processes_leave_one_run(finished: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    run, done = finished
    for name in ("recipe.yaml", "last.pt", "best.pt", "model.safetensors", "config.json", "curves.png"):
        assert (run / name).stat().st_size > 0, name
    assert not list(run.glob(".tmp-*"))
    lines = lines_of(run)
    assert [line["iteration"] for line in lines if "loss" in line] == list(range(1, ITERATIONS + 1))
    assert [line["iteration"] for line in lines if "box_ap" in line] == [ITERATIONS]
    assert len(lines) == ITERATIONS + 1
    # What is announced is announced once: the learning rate, here 0.002 × 4 images / 2.
    told = [line for line in (done.stdout + done.stderr).splitlines() if "learning rate" in line]
    assert len(told) == 1
    assert "0.004" in told[0]


def test_an_evaluation_by_two_processes_counts_each_image_once(
    finished: tuple[Path, subprocess.CompletedProcess[str]], workplace: Path, tmp_path: Path
) -> None:
    run, _ = finished
    source = DataSource(str(workplace), str(workplace / "instances.json"))
    alone = evaluate(load_detector(run), CocoDataset([source], masks=False, training=False), tmp_path)["bbox"]
    together = lines_of(run)[-1]
    assert alone["AR100"] > 0, "the detector finds nothing: the comparison would say nothing"
    assert {name: together[f"box_{name.lower()}"] for name in alone} == pytest.approx(alone, abs=1e-4)


def test_two_processes_go_on_as_if_they_had_never_stopped(
    finished: tuple[Path, subprocess.CompletedProcess[str]], workplace: Path, tmp_path: Path
) -> None:
    whole, run = finished[0], tmp_path / "run"
    first = torchrun(workplace / f"{ITERATIONS // 2}.yaml", "--output", run)
    assert first.returncode == 0, first.stderr
    assert losses_of(run) == losses_of(whole)[: ITERATIONS // 2]
    second = torchrun(workplace / f"{ITERATIONS}.yaml", "--resume", "--output", run)
    assert second.returncode == 0, second.stderr
    assert losses_of(run) == losses_of(whole)
    assert lines_of(run)[-1] == lines_of(whole)[-1]


def test_an_error_of_one_process_ends_all_with_one_line(workplace: Path, tmp_path: Path) -> None:
    """Only the first process looks at the output folder; the other one must not wait for it forever."""
    (tmp_path / "thesis.txt").write_text("the only copy")
    done = torchrun(workplace / f"{ITERATIONS}.yaml", "--output", tmp_path)
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if "error:" in line and "--overwrite" in line]
    assert line.startswith("error: ")
    assert str(tmp_path) in line
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_batch_that_cannot_be_shared_ends_all(workplace: Path, tmp_path: Path) -> None:
    done = torchrun(workplace / f"{ITERATIONS}.yaml", "solver.batch_size=3", "--output", tmp_path / "run")
    assert done.returncode != 0
    told = [line for line in done.stderr.splitlines() if "solver.batch_size" in line]
    assert any(line.startswith("error: ") for line in told)
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def answers(body: Callable[[int], str], timeout: float = 60) -> list[str]:
    """Return what a function returns, or which error it raises, in each of two forked processes of one group.

    A process that says nothing until the first has answered is killed, and its answer is empty.
    """
    port, processes, ends = free_port(), [], []
    for rank in range(PROCESSES):
        read, write = os.pipe()
        process = os.fork()
        if process == 0:
            try:
                os.environ.update(RANK=str(rank), WORLD_SIZE=str(PROCESSES), MASTER_ADDR="127.0.0.1")
                os.environ["MASTER_PORT"] = str(port)
                try:
                    with distributed.process_group(torch.device("cpu"), timeout):
                        answer = body(rank)
                except Exception as error:
                    answer = f"{type(error).__name__}: {error}"
                os.write(write, answer.encode())
            finally:
                os._exit(0)
        os.close(write)
        processes.append(process)
        ends.append(read)
    try:
        first = os.read(ends[0], 10_000).decode()
        if not first.startswith("done"):
            killed(processes[1])
        return [first, os.read(ends[1], 10_000).decode()]
    finally:
        for process, end in zip(processes, ends, strict=True):
            killed(process)
            os.close(end)


def together() -> str:
    return f"done {distributed.mean_over_processes(torch.tensor([2.0])).item()}"


def test_processes_that_answer() -> None:
    def body(rank: int) -> str:
        with distributed.patience(), distributed.patience():  # the inner one does nothing
            together()
        return together()

    assert answers(body) == ["done 2.0", "done 2.0"]


ENDS: dict[str, tuple[int, str]] = {
    "dies": (signal.SIGKILL, "ended.*memory"),
    "is stopped": (signal.SIGSTOP, r"2 s \(data\.timeout\)"),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("patient", [False, True])
def test_a_process_that_does_not_answer(end: str, patient: bool) -> None:
    number, expected = ENDS[end]

    def body(rank: int) -> str:
        together()
        with distributed.patience() if patient else contextlib.nullcontext():
            if rank == 1:
                os.kill(os.getpid(), number)
        return together()

    first, second = answers(body, timeout=2 if number == signal.SIGSTOP else 60)
    assert first.startswith("ProcessLostError")
    assert re.search(expected, first)
    assert "\n" not in first
    assert not second


def test_a_process_that_fails_while_the_others_are_patient() -> None:
    def body(rank: int) -> str:
        with distributed.patience():
            if rank == 1:
                raise ValueError("a defect")
        return together()

    first, _ = answers(body, timeout=60)
    assert first.startswith("ProcessLostError")


@pytest.mark.slow
def test_long_work_is_not_taken_for_a_frozen_process() -> None:
    """Rank 0 works longer than the timeout, as it does when it evaluates or builds kernels."""

    def body(rank: int) -> str:
        with distributed.patience():
            if rank == 0:
                end = time.monotonic() + 12
                while time.monotonic() < end:
                    signal.sigtimedwait([], 0.1)
        return together()

    assert answers(body, timeout=8) == ["done 2.0", "done 2.0"]


def test_a_group_of_the_caller_is_used_and_left(tmp_path: Path) -> None:
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        with distributed.process_group(torch.device("cpu"), 5):
            assert distributed.world_size() == 1
        assert dist.is_initialized()
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (RuntimeError("[…/gloo/transport/tcp/pair.cc:561] Connection closed by peer [127.0.0.1]:1"), "has ended"),
        (RuntimeError("[…/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 3000ms for recv"), "data.timeout"),
        (dist.DistBackendError("NCCL communicator was aborted: Watchdog caught collective operation timeout"), "data."),
        (dist.DistNetworkError("The server socket has failed to listen: address already in use"), "already in use"),
    ],
)
def test_errors_of_collective_operations_are_one_line(error: Exception, expected: str) -> None:
    def wrapped() -> None:
        try:
            raise error
        except RuntimeError as inner:
            raise ValueError("another library's") from inner

    with pytest.raises(distributed.ProcessLostError, match=expected), distributed.lost_processes():
        raise error
    with pytest.raises(distributed.ProcessLostError, match=expected), distributed.lost_processes():
        wrapped()
    with pytest.raises(RuntimeError, match="other"), distributed.lost_processes():
        raise RuntimeError("other")
