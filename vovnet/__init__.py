"""VoVNet for timm: importing this package registers its networks, such as ``vovnet39``, with timm.

``timm.create_model("vovnet39")`` then works as for timm's own models. Object detection is in :mod:`vovnet.detection`,
which this package does not import.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if not Path(__file__).with_name("adapters").exists():
    # An unpacked sdist has no links: adapters/, detection/ and hub/ lie beside this folder.
    __path__.append(str(Path(__file__).parents[1]))

from vovnet import vovnet_v2  # noqa: F401 (registers VoVNetV2)
from vovnet.processes import handle_forks
from vovnet.vovnet import VoVNet

if TYPE_CHECKING:
    from vovnet.fusion import fuse
    from vovnet.memory import memory_efficient

handle_forks()

__all__ = ["VoVNet", "__version__", "fuse", "memory_efficient"]

try:
    __version__ = version("vovnet")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> object:
    """Import on first use what loads the operators."""
    if name == "fuse":
        from vovnet.fusion import fuse

        return fuse
    if name == "memory_efficient":
        from vovnet.memory import memory_efficient

        return memory_efficient
    raise AttributeError(f"module 'vovnet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
