"""State dicts in the forms that other projects publish, of random or constant numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
from torch import Tensor, nn

from vovnet.vovnet_v2 import published_v2_keys


def network(name: str, seed: int = 0, **arguments: Any) -> Any:
    """A timm model in evaluation mode whose norms do something."""
    torch.manual_seed(seed)
    model: Any = timm.create_model(name, **arguments)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def renamed(model: nn.Module, names: Mapping[str, str]) -> dict[str, Tensor]:
    """A model's state under a publisher's names (the publisher's key → timm's)."""
    state = model.state_dict()
    return {theirs: state[ours] for theirs, ours in names.items() if ours in state}


def dd3d(model: nn.Module, *, std: tuple[float, float, float] = (57.375, 57.12, 58.395)) -> dict[str, Tensor]:
    """A file's ``model`` in DD3D's form: a V2 network, a pyramid with P6, heads for 2D and 3D boxes, the pixels' mean.

    The names are those of tridet/modeling/dd3d (core.py, fcos2d.py, fcos3d.py) and of detectron2's FPN, with the batch
    norms of configs/models/dd3d.yaml: one for each of four levels.
    """
    file = {f"backbone.bottom_up.{key}": value for key, value in renamed(model, published_v2_keys(model)).items()}
    for level in (3, 4, 5):
        file |= _convolution(f"backbone.fpn_lateral{level}", norms=[""])
        file |= _convolution(f"backbone.fpn_output{level}", norms=[""])
    file |= _convolution("backbone.top_block.p6")
    levels = [f".{level}" for level in range(4)]
    for tower in ("fcos2d_head.cls_tower", "fcos2d_head.box2d_tower", "fcos3d_head.box3d_tower"):
        for layer in range(4):
            file |= _convolution(f"{tower}.{layer}", norms=levels)
    for predictor in ("fcos2d_head.cls_logits", "fcos2d_head.box2d_reg", "fcos2d_head.centerness"):
        file |= _convolution(predictor)
    for predictor in ("quat", "ctr", "depth", "size", "conf"):
        file |= _convolution(f"fcos3d_head.box3d_{predictor}.0")
    for scale in ("fcos2d_head.scales_box2d_reg", "fcos3d_head.scales_size", "fcos3d_head.scales_depth"):
        file |= {f"{scale}{level}.scale": torch.ones(1) for level in levels}
    file |= {f"fcos3d_head.offsets_depth{level}.bias": torch.ones(1) for level in levels}
    file |= {f"fcos3d_head.{what}_depth_per_level": torch.ones(4) for what in ("mean", "std")}
    mean = torch.tensor([103.53, 116.28, 123.675])
    return file | {"pixel_mean": mean.view(3, 1, 1), "pixel_std": torch.tensor(std).view(3, 1, 1)}


def _convolution(name: str, norms: list[str] | None = None) -> dict[str, Tensor]:
    if norms is None:
        return {f"{name}.weight": torch.ones(2, 2, 1, 1), f"{name}.bias": torch.ones(2)}
    leaves = {"weight": torch.ones(2), "bias": torch.ones(2), "running_mean": torch.ones(2)}
    leaves |= {"running_var": torch.ones(2), "num_batches_tracked": torch.tensor(3)}
    return {
        f"{name}.weight": torch.ones(2, 2, 1, 1),
        **{f"{name}.norm{level}.{leaf}": value for level in norms for leaf, value in leaves.items()},
    }
