"""The operators of One-Shot Aggregation: plain PyTorch as the reference, compiled where there is a GPU.

Each is defined once, in plain PyTorch, as an operator in torch's library (``torch.ops.vovnet.…``) with schema, fake
kernel, autograd and autocast. docs/operators.md says what they save, and how to add another.
"""

from vovnet.ops.aggregate import osa_aggregate
from vovnet.ops.conv import conv_affine_relu

__all__ = ["conv_affine_relu", "osa_aggregate"]
