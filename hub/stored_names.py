"""The name that a VoVNet has in timm's ``config.json``: plain timm's with arguments, or this package's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.models.vovnet import model_cfgs as timm_vovnets

from vovnet.vovnet import model_cfgs as vovnets

PLAIN_TIMM = "vovnet39a"
"""timm's architecture that describes every VoVNet of this package with ``residual=True`` (timm 0.9.16 and newer)."""


def stored_config(config: Mapping[str, Any], *, portable: bool) -> dict[str, Any]:
    """Return timm's ``config.json`` with a VoVNet under the name that plain timm loads, or under this package's name.

    Both networks have the same keys and outputs. The configuration of any other network does not change.

    Args:
        config: The contents of ``config.json``.
        portable: True for the name that plain timm loads.
    """
    name = own_architecture(config)
    if name not in vovnets or portable == (config["architecture"] == PLAIN_TIMM):
        return dict(config)
    arguments = dict(config.get("model_args", {}))
    shape = {key: _as_list(value) for key, value in vovnets[name].items()}
    if portable:
        base = {key: _as_list(value) for key, value in timm_vovnets[PLAIN_TIMM].items()}
        # Leave out timm's defaults, and the number of classes, which config.json also holds beside the arguments.
        arguments = {k: v for k, v in arguments.items() if (k, v) not in _DEFAULTS and k != "num_classes"}
        arguments |= {"residual": True} | {key: value for key, value in shape.items() if base.get(key) != value}
    else:
        arguments = {key: value for key, value in arguments.items() if key != "residual" and key not in shape}
    rest = {key: value for key, value in config.items() if key not in ("architecture", "model_args")}
    return {
        "architecture": PLAIN_TIMM if portable else name,
        **({"model_args": arguments} if arguments else {}),
        **rest,
    }


_DEFAULTS = (("in_chans", 3), ("global_pool", "avg"))


def own_architecture(config: Mapping[str, Any]) -> str:
    """Return this package's name of the network in timm's ``config.json``, or timm's name if it is another network."""
    name: str = config["architecture"]
    arguments = config.get("model_args", {})
    if name != PLAIN_TIMM or arguments.get("residual") is not True:
        return name
    for ours, shape in vovnets.items():
        described = {**timm_vovnets[PLAIN_TIMM], **arguments}
        if all(_as_list(described.get(key)) == _as_list(value) for key, value in shape.items()):
            return ours
    return name


def _as_list(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value
