"""The operators of One-Shot Aggregation: a reference in plain PyTorch, and compiled kernels for GPUs and CPUs.

Each operator is defined once, in plain PyTorch, and registered as ``torch.ops.vovnet.…`` with schema, fake kernel,
autograd and autocast. docs/reference/operators.md says what they save, docs/how-to/add_an_operator.md how to add one.
"""

from vovnet.ops.aggregate import osa_aggregate
from vovnet.ops.conv import conv_affine_relu

__all__ = ["conv_affine_relu", "osa_aggregate"]
