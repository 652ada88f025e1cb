"""VoVNet for timm: importing this package registers its networks, such as ``vovnet39``, with timm.

``timm.create_model("vovnet39")`` then works as for timm's own models. Object detection is in :mod:`vovnet.detection`,
which this package does not import.

Where torch, torchvision or timm is absent, nothing is registered. What reads and runs exported files
(:mod:`vovnet.export`) works there.
"""

from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if not Path(__file__).with_name("adapters").exists():
    # An unpacked sdist has no links: adapters/, detection/ and hub/ lie beside this folder.
    __path__.append(str(Path(__file__).parents[1]))

from vovnet.errors import absent_package, install_advice

if TYPE_CHECKING:
    from vovnet.fusion import fuse
    from vovnet.memory import memory_efficient
    from vovnet.vovnet import VoVNet

_ABSENT = absent_package("torch", "torchvision", "timm")
if _ABSENT is None:
    from vovnet import vovnet_v2  # noqa: F401 (registers VoVNetV2)
    from vovnet.processes.forks import handle_forks
    from vovnet.vovnet import VoVNet

    handle_forks()

__all__ = ["VoVNet", "__version__", "fuse", "memory_efficient"]

try:
    __version__ = version("vovnet")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"


def __getattr__(name: str) -> object:
    """Import on first use what loads the operators."""
    if _ABSENT is not None and name in ("VoVNet", "fuse", "memory_efficient"):
        raise ModuleNotFoundError(
            f"vovnet.{name} needs '{_ABSENT}', which is not installed: {install_advice()}", name=_ABSENT
        )
    if name == "fuse":
        from vovnet.fusion import fuse

        return fuse
    if name == "memory_efficient":
        from vovnet.memory import memory_efficient

        return memory_efficient
    raise AttributeError(f"module 'vovnet' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
