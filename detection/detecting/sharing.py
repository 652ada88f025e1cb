"""One output folder for the processes of torchrun: they start together, and the first one claims it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from vovnet.detection import distributed
from vovnet.folders.claim import claimed_folder


@contextlib.contextmanager
def shared_output(
    output: str | os.PathLike[str], *, overwrite: bool, device: torch.device, timeout: float = 600
) -> Iterator[None]:
    """Join the processes of torchrun, and claim a folder in that of rank 0, for the length of a ``with`` block.

    Without torchrun, only the folder is claimed.

    Args:
        output: see :func:`vovnet.folders.claim.claimed_folder`.
        overwrite: the same.
        device: of this process.
        timeout: seconds that a process waits for the others; 0 waits forever.

    Raises:
        InputError: in every process, if the folder cannot be used.
        ProcessLostError: another process of the group ended or does not answer.
    """

    def claim(stack: contextlib.ExitStack) -> None:
        stack.enter_context(claimed_folder(output, overwrite=overwrite))

    with distributed.process_group(device, timeout), distributed.opened_by_main(claim):
        yield
