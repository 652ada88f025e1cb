"""Compile and load the C++ and CUDA operators. ``python -m vovnet.ops.build`` compiles them ahead of time."""
