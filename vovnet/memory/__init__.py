"""``vovnet.memory_efficient``: OSA networks train in less memory, with the same parameters and keys."""

from vovnet.memory.layers import Memory, has_osa_blocks, memory_efficient

__all__ = ["Memory", "has_osa_blocks", "memory_efficient"]
