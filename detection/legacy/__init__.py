"""maskrcnn-benchmark's conventions, which reproduce the published detectors and their training.

The reference is stigma0617/maskrcnn-benchmark-vovnet. Where it differs from torchvision, the modules here have small
subclasses or replacements of torchvision's parts. Everything else is torchvision's. Sources are given as ``file:line``
below the reference's folder ``maskrcnn_benchmark``.
"""
