"""The entry point ``torchrun --nproc-per-node N -m vovnet.detection.train RECIPE [key=value …]``.

It is a package and not a module, so that running it as ``__main__`` imports nothing twice. The attribute
``vovnet.detection.train`` is the function (see ``detection/__init__.py``).
"""
