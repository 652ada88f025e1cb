"""``vovnet.fuse``: an inference copy with norms folded into convolutions and blocks replaced by fused ones."""

from vovnet.fusion.fuser import fuse

__all__ = ["fuse"]
