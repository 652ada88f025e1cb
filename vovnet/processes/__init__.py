"""Processes: forked children can use models, and the processes of a distributed run find each other."""

from vovnet.processes.fork_lock import ForkSafeLock

__all__ = ["ForkSafeLock"]
