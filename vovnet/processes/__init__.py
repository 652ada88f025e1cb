"""What a model needs in a forked process: threads that exist, and locks that are free."""

from vovnet.processes.forks import ForkSafeLock, handle_forks

__all__ = ["ForkSafeLock", "handle_forks"]
