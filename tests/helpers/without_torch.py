"""``python without_torch.py ARGUMENT…``: the command ``vovnet`` where only NumPy, Pillow, Typer and runtimes exist."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import ModuleType

HIDDEN = (
    "torch",
    "torchvision",
    "timm",
    "safetensors",
    "huggingface_hub",
    "jinja2",
    "pycocotools",
    "matplotlib",
    "tqdm",
    "yaml",
)


class Hider:
    """An import hook before all others: the packages of :data:`HIDDEN` are not there."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> None:
        if name.split(".")[0] in HIDDEN:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name.split(".")[0])


if __name__ == "__main__":
    sys.meta_path.insert(0, Hider)
    from vovnet.cli import main

    main()
