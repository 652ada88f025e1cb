"""maskrcnn-benchmark's conventions: the published detectors, and their training, to the last decimal.

Each module holds some of the places where the reference, stigma0617/maskrcnn-benchmark-vovnet, differs from
torchvision, as small subclasses or replacements of torchvision's parts; what is equal is torchvision's. Sources are
given as ``file:line`` below its folder ``maskrcnn_benchmark``.
"""
