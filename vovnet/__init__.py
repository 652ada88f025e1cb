"""VoVNet for timm: importing this package registers ``vovnet27_slim``, ``vovnet39`` and ``vovnet57``.

``timm.create_model("vovnet39")`` then works as for timm's own models. Detection lies in ``vovnet.detection`` and is not
imported here.
"""

from importlib.metadata import PackageNotFoundError, version

from vovnet import vovnet_v2  # noqa: F401 (registers ese_vovnet19b and ese_vovnet39b_all, 57b_all and 99b_all)
from vovnet.vovnet import VoVNet

__all__ = ["VoVNet", "__version__"]

try:
    __version__ = version("vovnet")
except PackageNotFoundError:  # run from a checkout that is not installed
    __version__ = "0+unknown"
