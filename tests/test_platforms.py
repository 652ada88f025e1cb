"""Systems other than Linux, as far as Linux can imitate them: Windows' Python, and a Mac with its GPU, ``mps``."""

import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import vovnet.ops  # noqa: F401 (registers the operators)
from vovnet import environment
from vovnet.detection.config.data import DataRecipe
from vovnet.detection.data import loader, workers
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.data.synthetic import generate_shapes
from vovnet.detection.training import state
from vovnet.detection.training.callbacks import memory_in_use
from vovnet.environment import environment_report, peak_memory
from vovnet.errors import InputError
from vovnet.processes.devices import choose_device, computes_with_bf16, default_device

MPS = torch.device("mps")
OPERATORS = ("osa_aggregate", "osa_aggregate_backward", "conv_affine_relu", "conv_affine_relu_backward")


def test_everything_works_without_what_windows_lacks(tmp_path: Path, repository: Path) -> None:
    own = {
        "PYTHONPATH": os.pathsep.join([str(repository), str(repository / "tests" / "helpers")]),
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "none"),
        "VOVNET_OPS": "auto",
        "TMPDIR": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-m", "without_posix", str(tmp_path)],
        cwd=repository,
        env=os.environ | own,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "scores" / "metrics.json").is_file()
    assert list((tmp_path / "drawn").glob("*.json"))
    assert done.stderr.count("operators run as plain PyTorch") == 1
    assert "Traceback" not in done.stderr
    assert "failed" not in done.stdout


def test_a_process_tells_its_peak_memory_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    known = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert peak_memory() == pytest.approx(1024 * known, rel=0.1)
    monkeypatch.setattr(environment, "sys", SimpleNamespace(platform="darwin"))
    assert peak_memory() == pytest.approx(known, rel=0.1)  # a Mac tells bytes
    monkeypatch.setitem(sys.modules, "resource", None)
    assert peak_memory() is None
    assert memory_in_use(torch.device("cpu")) is None


def test_loader_workers_can_start_in_a_new_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows and macOS spawn workers, and Python 3.14 does on Linux: what a worker gets must be picklable."""
    sources = generate_shapes(tmp_path, train=2, val=1, size=(64, 64), max_shapes=2)
    seen: list[object] = []

    def record(samples: object, **options: Any) -> list[object]:
        seen.extend((samples, options["collate_fn"], options["worker_init_fn"]))
        return []

    monkeypatch.setattr(workers, "DataLoader", record)
    dataset = CocoDataset([sources["train"]], masks=True, training=True)
    for data in (DataRecipe(workers=1, colour=0.1, vertical_flip=0.1), DataRecipe(workers=1, scale_jitter=[0.5, 2.0])):
        assert next(loader.training_loader(dataset, data, batch_size=1, seed=0), None) is None
    assert list(loader.evaluation_loader(dataset, workers=1)) == []
    assert len(seen) == 9
    for part in seen:
        pickle.loads(pickle.dumps(part))


@pytest.mark.parametrize("device", ["mps", "mps:1", "cuda:99", "meta", "vulkan", "nonsense", "gpu"])
def test_a_device_that_is_not_here_is_refused(device: str) -> None:
    with pytest.raises(InputError, match=device):
        choose_device(device, torch.device("cpu"))


def test_a_macs_gpu_can_be_named_and_is_no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 2**30)
    assert choose_device("mps", torch.device("cpu")) == MPS
    assert default_device() == torch.device("cpu")
    assert not computes_with_bf16(MPS)
    assert memory_in_use(MPS) == 2**30
    assert "mps" in environment_report()
    assert not torch.amp.GradScaler("mps", enabled=False).is_enabled()


def test_a_checkpoint_has_the_random_state_of_a_macs_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    states = [torch.arange(4, dtype=torch.uint8)]
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: states[-1])
    monkeypatch.setattr(torch.mps, "set_rng_state", states.append)
    saved = state.random_state()
    states.append(torch.zeros(4, dtype=torch.uint8))
    state.restore_random_state(saved)
    assert torch.equal(states[-1], torch.arange(4, dtype=torch.uint8))
    state.restore_random_state({key: value for key, value in saved.items() if key != "mps"})  # an older file


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_run_as_plain_torch_on_a_macs_gpu(name: str) -> None:
    assert torch._C._dispatch_has_computed_kernel_for_dispatch_key(f"vovnet::{name}", "MPS")
    if not name.endswith("backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"vovnet::{name}", "AutocastMPS")
