"""Children of a process that has used PyTorch on several threads."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext

import pytest
import timm
import torch
from children import in_child
from small_networks import SIZES, detector
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import vovnet
from vovnet.detection import predict
from vovnet.processes import ForkSafeLock, forks

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
IMAGE = torch.rand((1, 3, 96, 96), generator=torch.Generator().manual_seed(1))
DETECTORS = {"faster": "faster_rcnn_vovnet39_fpn", "mask": "mask_rcnn_vovnet39_fpn", "legacy": "mask_rcnn_V_39_FPN_1x"}


@pytest.fixture(autouse=True)
def _two_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return timm.create_model("vovnet27_slim", features_only=True, **SIZES).eval()


def run(model: nn.Module, image: Tensor = IMAGE) -> list[Tensor]:
    with torch.no_grad():
        return list(model(image))


def answer(model: nn.Module) -> Callable[[], tuple[list[bytes], int]]:
    """A function that returns the model's output, and the number of threads with which it was computed."""
    return lambda: ([out.numpy().tobytes() for out in run(model)], torch.get_num_threads())


@pytest.mark.parametrize("fused", [False, True], ids=["plain", "fused"])
class TestNetworks:
    @pytest.fixture
    def model(self, network: nn.Module, fused: bool) -> nn.Module:
        return vovnet.fuse(network) if fused else network

    def test_a_child_computes_as_its_parent_does(self, model: nn.Module) -> None:
        ask = answer(model)
        expected = ask()
        assert expected[1] == 2
        for _ in range(3):
            assert in_child(ask) == expected
            assert ask() == expected

    def test_children_have_children(self, model: nn.Module) -> None:
        ask = answer(model)
        expected = ask()
        assert in_child(lambda: (ask(), in_child(lambda: (ask(), in_child(ask))))) == (expected, (expected, expected))

    def test_only_loaded(self, model: nn.Module) -> None:
        """Loading copies weights on several threads; the parent has not called the model."""
        torch.ones(1000, 1000).add(1)
        assert in_child(lambda: len(run(model))) == 5

    def test_a_thread_forks(self, model: nn.Module) -> None:
        ask = answer(model)
        expected = ask()
        with ThreadPoolExecutor(1) as pool:
            assert pool.submit(ask).result() == expected
            assert pool.submit(in_child, ask).result() == expected
        assert in_child(ask) == expected

    def test_a_fork_while_other_threads_compute(self, model: nn.Module) -> None:
        ask = answer(model)
        expected = ask()
        stop = threading.Event()

        def compute() -> None:
            while not stop.is_set():
                assert ask() == expected

        with ThreadPoolExecutor(2) as pool:
            busy = [pool.submit(compute) for _ in range(2)]
            try:
                assert [in_child(ask) == expected for _ in range(5)] == [True] * 5
            finally:
                stop.set()
            for one in busy:
                one.result()

    @pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, nullcontext])
    def test_a_fork_in_every_mode_of_autograd(
        self, model: nn.Module, mode: Callable[[], AbstractContextManager[None]]
    ) -> None:
        expected = run(model)
        with mode():
            found = in_child(lambda: [out.tolist() for out in model(IMAGE)])
        assert found == [out.tolist() for out in expected]

    def test_workers_of_a_loader_and_of_a_pool(self, model: nn.Module) -> None:
        run(model)
        loader = DataLoader(Computed(model), batch_size=None, num_workers=2, multiprocessing_context="fork")
        for outputs in loader:  # by workers with one thread
            torch.testing.assert_close(outputs, run(model))
        expected = [out.tolist() for out in run(model)]
        with multiprocessing.get_context("fork").Pool(2, initializer=_set_model, initargs=(model,)) as pool:
            assert pool.map_async(_outputs_of_model, range(3)).get(60) == [expected] * 3


class Computed(Dataset[list[Tensor]]):
    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> list[Tensor]:
        return run(self.model)


_model: list[nn.Module] = []


def _set_model(model: nn.Module) -> None:
    _model[:] = [model]


def _outputs_of_model(_: int) -> list[list[float]]:
    return [out.tolist() for out in run(_model[0])]


@pytest.mark.parametrize("recipe", DETECTORS.values(), ids=DETECTORS)
def test_detectors(recipe: str) -> None:
    plain = detector(recipe)
    for model in (plain, vovnet.fuse(plain)):
        expected = predict(model, [IMAGE[0]])
        assert in_child(lambda model=model: predict(model, [IMAGE[0]])) == expected


def test_fuse_in_a_child(network: nn.Module) -> None:
    expected = answer(vovnet.fuse(network))()
    assert in_child(lambda: answer(vovnet.fuse(network))()) == expected


def test_training_in_a_child(network: nn.Module) -> None:
    """On the CPU PyTorch trains in a child before and after its parent has trained."""

    def step() -> float:
        sum(out.sum() for out in model(IMAGE)).backward()
        return float(next(model.parameters()).grad.sum())

    model = timm.create_model("vovnet27_slim", features_only=True, **SIZES).eval()
    run(model)
    first = in_child(step)
    assert first == step()
    model.zero_grad()
    assert in_child(step) == first


def test_a_child_ends_as_a_program_does(network: nn.Module) -> None:
    """A child that does not leave by ``os._exit`` runs PyTorch's destructors, which know a pool of their own."""
    program = """if True:
        import os, signal, torch, vovnet
        torch.set_num_threads(3)
        torch.ones(1000, 1000).add(1)
        if os.fork() == 0:
            signal.alarm(60)
            if os.fork() == 0:
                signal.alarm(60)
                torch.ones(1000, 1000).add(1)
            else:
                assert os.wait()[1] == 0
        else:
            assert os.wait()[1] == 0
            print("ended")
    """
    # Python 3.12 warns about any fork of a process with several threads.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
    assert not done.stderr


def own(caught: list[warnings.WarningMessage]) -> int:
    """Count this package's warnings; Python 3.12 has one of its own about forks."""
    return sum(one.category is RuntimeWarning for one in caught)


class TestOtherRuntimes:
    """What happens where the OpenMP runtime has no function to free its threads."""

    @pytest.fixture(autouse=True)
    def _without(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(forks, "_runtime_function", lambda name: None)
        monkeypatch.setattr(forks, "_survives_forks", lambda: False)
        monkeypatch.setattr(forks, "_warned", False)

    def test_one_thread_and_one_warning(self, network: nn.Module) -> None:
        expected = run(network)

        def child() -> tuple[bool, int, int]:
            same = all(torch.allclose(a, b, atol=1e-5) for a, b in zip(run(network), expected, strict=True))
            return same, torch.get_num_threads(), own(caught)

        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert in_child(child) == (True, 1, 1)
            assert in_child(child) == (True, 1, 0)
            assert in_child(lambda: in_child(child)) == (True, 1, 0)
        assert torch.get_num_threads() == 2

    def test_no_warning_with_one_thread(self, network: nn.Module) -> None:
        torch.set_num_threads(1)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert in_child(lambda: (len(run(network)), own(caught))) == (5, 0)


@pytest.mark.skipif(sys.platform != "linux", reason="needs glibc's fork")
@pytest.mark.skipif(sys.version_info >= (3, 13), reason="Python 3.13 must be told before a fork, or the child dies")
def test_a_fork_that_python_does_not_see(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """uWSGI forks in C, and tells Python only afterwards."""
    monkeypatch.setattr(forks, "_warned", True)

    def fork() -> int:
        child = int(ctypes.PyDLL(None).fork())
        if child == 0:
            ctypes.pythonapi.PyOS_AfterFork_Child()
        return child

    ask = answer(network)
    ask()
    if forks._survives_forks():
        pytest.skip("this OpenMP runtime has new threads in every child")
    assert in_child(lambda: (ask()[1], in_child(ask)[1]), fork) == (1, 1)
    assert ask()[1] == 2


def test_a_process_that_was_forked_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """If this package was first imported in a child, the threads may be the parent's, and are not waited for."""
    monkeypatch.setattr(forks, "_has_its_threads", None)
    monkeypatch.setattr(forks, "_is_forked", lambda: True)
    assert not forks._may_free_threads()


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_linux_knows_forked_processes() -> None:
    assert in_child(forks._is_forked)
    assert not forks._is_forked()


def test_settings_are_kept(network: nn.Module) -> None:
    for threads in (1, 3, 2):
        torch.set_num_threads(threads)
        run(network)
        assert in_child(lambda: (len(run(network)), torch.get_num_threads())) == (5, threads)


def test_locks_are_free_in_a_child() -> None:
    lock = ForkSafeLock()
    held, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            leave.wait()

    def take() -> bool:
        with lock:
            return True

    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(hold)
        held.wait()
        try:
            assert in_child(take)
        finally:
            leave.set()
        holding.result()
    with lock:
        assert in_child(lambda: lock.__exit__(None, None, None) or take())
    assert take()


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_every_way_to_start_processes(method: str, network: nn.Module) -> None:
    expected = [out.tolist() for out in run(network)]
    with multiprocessing.get_context(method).Pool(2, initializer=_set_model, initargs=(network,)) as pool:
        assert pool.map_async(_outputs_of_model, range(8)).get(300) == [expected] * 8


@pytest.mark.slow
def test_a_thousand_forks_while_threads_compute(network: nn.Module) -> None:
    fused = vovnet.fuse(network)
    ask = answer(fused)
    expected = ask()
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            run(fused)
            run(network)

    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(compute) for _ in range(2)]
        try:
            for _ in range(1000):
                assert in_child(ask) == expected
        finally:
            stop.set()
        for one in busy:
            one.result()
