"""Processes: forked children can use models, and the processes of a distributed run find each other."""

from vovnet.processes.forks import ForkSafeLock, handle_forks

__all__ = ["ForkSafeLock", "handle_forks"]
