"""Compile and load the C++ and CUDA operators; ``python -m vovnet.ops.build`` does it ahead of time."""
