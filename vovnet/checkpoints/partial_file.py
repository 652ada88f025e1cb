"""A file that is being downloaded, which the next call can go on with."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vovnet.errors import InputError
from vovnet.folders.locks import held_lock
from vovnet.folders.temporary import temporary_path
from vovnet.terminal.streams import say

_POLL = 0.1  # seconds between looks at what another process downloads
_clock = time.monotonic


@dataclass
class PartialFile:
    """The beginning of a file at an address, under the lock of this process."""

    path: Path
    """``NAME.part``, or another name where nothing can be kept for the next call."""
    url: str
    state: Path
    """``NAME.part.state``: the lock, and which version of the file :attr:`path` begins."""
    descriptor: int | None
    """The open file :attr:`state`; None if its file system has no locks."""
    validator: str | None = None
    """The server's name of the version: its ETag or date of change. None if it gave none."""
    _discarded: bool = False

    @property
    def size(self) -> int:
        """The number of bytes that have come."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def kept(self) -> int:
        """The number of bytes that the next call can go on from."""
        return self.size if self.validator is not None and self.descriptor is not None else 0

    def restart(self, validator: str | None) -> None:
        """Forget what has come, because the file comes from its beginning, perhaps in another version."""
        self.path.unlink(missing_ok=True)
        self.validator = validator
        if self.descriptor is not None:
            os.ftruncate(self.descriptor, 0)
            os.lseek(self.descriptor, 0, os.SEEK_SET)
            os.write(self.descriptor, json.dumps({"url": self.url, "validator": validator}).encode())

    def read_state(self) -> None:
        """Take the version from the state file, unless that is damaged or of another address."""
        if self.path.is_symlink() or not self.path.is_file():
            self.path.unlink(missing_ok=True)  # nothing is written through a link
        if self.descriptor is None:
            return
        os.lseek(self.descriptor, 0, os.SEEK_SET)
        with contextlib.suppress(ValueError, AttributeError):
            known = json.loads(os.read(self.descriptor, 2**16))
            if known.get("url") == self.url and isinstance(known.get("validator"), str):
                self.validator = known["validator"]

    def discard(self) -> None:
        """Remove the files. Afterwards other files of these names are another process's."""
        if self._discarded:
            return
        self._discarded = True
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # Windows does not remove what is open
            self.state.unlink()


@contextlib.contextmanager
def claimed_partial_file(path: Path, url: str, patience: float) -> Iterator[PartialFile]:
    """Yield a partial file that no other process writes to, after waiting for one that does.

    When the ``with`` block ends, the files are removed unless the next call can go on with them.

    Args:
        path: ``NAME.part``.
        url: The address that it is downloaded from.
        patience: Seconds for which another process may bring nothing.

    Raises:
        InputError: Another process has it, and nothing has come for so long.
    """
    state = path.with_name(f"{path.name}.state")
    with contextlib.ExitStack() as stack:
        descriptor = _lock_in_turn(stack, state, path, patience)
        own = path if descriptor is not None else temporary_path(path.parent, path.suffix)
        partial = PartialFile(own, url, state, descriptor)
        partial.read_state()
        try:
            yield partial
        finally:
            if not partial.kept:
                partial.discard()


def _lock_in_turn(stack: contextlib.ExitStack, state: Path, path: Path, patience: float) -> int | None:
    """Hold the lock until the stack is unwound, as soon as no other process has it; return its descriptor."""
    seen, since = -1, _clock()
    while True:
        with contextlib.suppress(BlockingIOError):
            return stack.enter_context(held_lock(state))
        size = path.stat().st_size if path.exists() else 0
        if seen == -1:
            say(f"{path.name.removesuffix('.part')}: another process is fetching it; waiting")
        if size != seen:
            seen, since = size, _clock()
        elif _clock() - since > patience:
            raise InputError(
                f"{path}: another process has been fetching it, and nothing has come for {patience:.0f} seconds; stop "
                "that process, or try again later"
            )
        time.sleep(_POLL)
