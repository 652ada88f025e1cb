"""The runnable face of training: ``torchrun --nproc-per-node N -m vovnet.detection.train RECIPE [key=value …]``.

A package rather than a module, so that running it as ``__main__`` imports nothing twice; the function
:func:`vovnet.detection.train` keeps the name (see ``detection/__init__.py``).
"""
