"""The processes that load batches: how they start, which signals they leave to their parent, and how they end."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator
from multiprocessing.process import BaseProcess
from typing import Any

import torch
from torch.utils.data import DataLoader

from vovnet.detection.data.collation import Batch, InWorker, collated, packed
from vovnet.detection.data.failures import NO_WORKERS, FrozenLoaderError, LoaderError, ended, loader_failures
from vovnet.detection.data.transforms import TransformedDataset
from vovnet.detection.data.transport import PREFETCH, Parcel


def load_batches(
    samples: TransformedDataset, workers: int, timeout: float, *, pin_memory: bool | None, **order: Any
) -> Generator[Batch]:
    """Load batches in ``workers`` processes, or here if that is 0; ``order`` has the options of a DataLoader.

    Raises:
        LoaderError: A worker died, or no batch arrived within ``timeout`` seconds (0 waits forever).
    """
    before = multiprocessing.active_children()
    pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
    batches = _started(samples, workers, timeout, {"pin_memory": pin_memory, **order})
    processes = [process for process in multiprocessing.active_children() if process not in before]
    try:
        with loader_failures():
            for batch in batches:
                if isinstance(batch, Exception):
                    raise batch
                yield _opened(batch) if isinstance(batch, Parcel) else batch
                _refuse_dead(processes)
    except FrozenLoaderError:
        _kill(processes)  # before torch waits for each of them
        raise
    except LoaderError:
        _refuse_dead(processes, wait=0.2)  # a batch of a dead worker cannot be opened; this says how it died
        raise
    finally:
        del batches  # torch asks the workers to end
        _kill(processes)


def _opened(parcel: Parcel) -> Batch:
    if parcel.fallback:
        warnings.warn(  # Python shows equal warnings of one line once
            f"batches are sent through pipes, which is slower, because no files in memory can be used "
            f"({parcel.fallback}); {NO_WORKERS}",
            RuntimeWarning,
            stacklevel=2,
        )
    batch: Batch = parcel.unpack()
    return batch


def _started(samples: TransformedDataset, workers: int, timeout: float, options: dict[str, Any]) -> Iterator[Any]:
    """Return the iterator of a DataLoader, in this process if no others can be started."""
    # The loader draws a seed when it starts. Its own generator keeps the random state of training as it is.
    options["generator"] = torch.Generator().manual_seed(0)
    if workers:
        if not multiprocessing.current_process().daemon:
            hook = sys.unraisablehook
            try:
                # torch's iterator cannot be deleted without an error if only some of its workers were started.
                sys.unraisablehook = lambda _: None
                return iter(
                    DataLoader(
                        InWorker(samples),
                        num_workers=workers,
                        prefetch_factor=PREFETCH,
                        timeout=timeout,
                        collate_fn=packed,
                        worker_init_fn=_leave_interrupts_to_the_parent,
                        **options,
                    )
                )
            except OSError as error:  # no semaphores in /dev/shm, too many files or processes, no memory
                why = error.strerror or str(error)
            finally:
                sys.unraisablehook = hook
        else:
            why = "this process is daemonic, and such a process may not start others"
        warnings.warn(
            f"data.workers={workers}: no loader processes can be started ({why}); images are loaded in this process",
            RuntimeWarning,
            stacklevel=2,
        )
    return iter(DataLoader(samples, collate_fn=collated, **options))


def _leave_interrupts_to_the_parent(worker: int) -> None:
    """Ignore in a worker the signals that stop a training, and leave the process group that torchrun signals.

    Training finishes its iteration after a signal, and needs its workers for that. If training itself dies, torch's
    watchdog ends the workers.
    """
    for name in ("SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        # Blocked, so that this thread receives it, and ignored by threads of libraries, which do not block it.
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        threading.Thread(target=_end_by_sigterm_of, args=(os.getppid(),), daemon=True).start()
    if hasattr(os, "setpgrp"):  # Windows has no process groups
        os.setpgrp()


def _end_by_sigterm_of(parent: int) -> None:
    """End this process if its parent sends SIGTERM. Those of SLURM and systemd reach every process of a training."""
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)


def _refuse_dead(processes: Iterable[BaseProcess], wait: float = 0) -> None:
    """Raise an error for a worker that died, which torch reports only once, and only in the main thread.

    Args:
        processes: The workers.
        wait: Seconds to wait for the end of each.
    """
    for process in processes:
        with contextlib.suppress(RuntimeError):  # raised by torch's handler of SIGCHLD
            process.join(wait)
        if process.exitcode:
            raise ended(process.pid, process.exitcode)


def _kill(processes: Iterable[BaseProcess]) -> None:
    """Kill the workers that still run. A stopped worker does not react to torch's SIGTERM, and would block our exit."""
    for process in processes:
        with contextlib.suppress(RuntimeError):  # raised by torch's handler of SIGCHLD, for the first of its workers
            if process.is_alive():
                process.kill()
                process.join(5)
