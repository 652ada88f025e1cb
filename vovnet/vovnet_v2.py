"""VoVNetV2 as its authors publish it: timm's networks with attention in **every** OSA block.

Paper: CenterMask: Real-Time Anchor-Free Instance Segmentation, https://arxiv.org/abs/1911.06667. The authors' networks
and weights: https://github.com/youngwanLEE/vovnet-detectron2 (weights under CC BY-NC 4.0).

Every block of the authors' networks ends with effective squeeze-and-excitation, before the identity is added
(vovnet-detectron2, vovnet/vovnet.py, ``_OSA_module``). In timm's ``ese_vovnet39b``, ``57b`` and ``99b``, only the last
block of a stage has it, so the authors' weights do not fit. The networks here differ from timm's only in this, and in
that their batch norms do not hide the activation (:class:`vovnet.vovnet.ConvNormAct`). If each stage is one block, the
two are the same: the authors' V-19 networks are timm's ``ese_vovnet19b``, ``19b_slim``, ``19b_dw`` and ``19b_slim_dw``.
timm 1.0.31 has the configuration of ``ese_vovnet19b`` but no entry point, so it is registered here.
"""

from typing import Any

from timm.layers import ConvNormAct as TimmConvNormAct
from timm.layers import create_attn
from timm.models import build_model_with_cfg, generate_default_cfgs, is_model, register_model
from timm.models.vovnet import VovNet, model_cfgs
from torch import nn

from vovnet.vovnet import ConvNormAct, imagenet_cfg, norm_keys, published_blocks, published_layers, separate_activation

__all__ = ["EseVovNet", "published_v2_keys"]  # timm adds the entry points


class EseVovNet(VovNet):
    """timm's ``VovNet`` with its ``attn`` in every block, where timm has it in the last block of a stage.

    Maps (N, in_chans, H, W) to logits (N, num_classes). Arguments and keys are timm's.
    """

    def __init__(self, cfg: dict[str, Any], device: Any = None, dtype: Any = None, **kwargs: Any) -> None:
        super().__init__(cfg, device=device, dtype=dtype, **kwargs)
        stages: Any = self.stages
        for block in (block for stage in stages for block in stage.blocks if block.attn is None):
            attn: Any = create_attn(cfg["attn"], block.conv_concat.conv.out_channels, device=device, dtype=dtype)
            nn.init.kaiming_normal_(attn.fc.weight, mode="fan_out", nonlinearity="relu")  # as in timm's VovNet
            block.attn = attn
        for layer in self.modules():
            if type(layer) is TimmConvNormAct:
                layer.__class__ = ConvNormAct
                separate_activation(layer)


def published_v2_keys(model: nn.Module) -> dict[str, str]:
    """Return the name in vovnet-detectron2's files → timm's name, for every tensor of a V2 network with batch norms.

    Their names are ``stem.stem_1/conv.weight``, ``stem.stem_2/dw_conv3x3.weight``, ``stem.stem_2/pw_norm.bias``,
    ``stage2.OSA2_1.conv_reduction.OSA2_1_reduction_0/conv.weight``, ``stage3.OSA3_1.layers.0.OSA3_1_0/norm.bias``,
    ``stage3.OSA3_1.concat.OSA3_1_concat/conv.weight`` and ``stage3.OSA3_1.ese.fc.weight`` (vovnet-detectron2,
    vovnet/vovnet.py).
    """
    layers = published_layers(model)
    keys = {"classifier.weight": "head.fc.weight", "classifier.bias": "head.fc.bias"}
    for theirs, ours, block in published_blocks(model):
        if block.conv_reduction is not None:
            osa = theirs.rpartition(".")[2]
            layers[f"{theirs}.conv_reduction.{osa}_reduction_0"] = f"{ours}.conv_reduction"
        if block.attn is not None:
            keys |= {f"{theirs}.ese.fc.{leaf}": f"{ours}.attn.fc.{leaf}" for leaf in ("weight", "bias")}
    for theirs, ours in layers.items():
        convs, norm = {"conv": "conv"}, "norm"
        if hasattr(model.get_submodule(ours), "conv_dw"):
            convs, norm = {"dw_conv3x3": "conv_dw", "pw_conv1x1": "conv_pw"}, "pw_norm"
        keys |= {f"{theirs}/{conv}.weight": f"{ours}.{our_conv}.weight" for conv, our_conv in convs.items()}
        keys |= norm_keys(f"{theirs}/{norm}", f"{ours}.bn")
    return keys


def _create_vovnet_v2(variant: str, pretrained: bool = False, **kwargs: Any) -> VovNet:
    return build_model_with_cfg(
        EseVovNet,
        variant,
        pretrained,
        model_cfg=model_cfgs[variant.removesuffix("_all")],
        feature_cfg={"flatten_sequential": True},
        **kwargs,
    )


def _cfg() -> dict[str, Any]:
    return imagenet_cfg(
        interpolation="bicubic",
        license="apache-2.0",  # the network's; the authors' weights, which `vovnet convert` reads, have another one
        origin_url="https://github.com/youngwanLEE/vovnet-detectron2",
        paper_name="CenterMask: Real-Time Anchor-Free Instance Segmentation",
        paper_ids="arXiv:1911.06667",
    )


_NAMES = ("ese_vovnet19b", "ese_vovnet39b_all", "ese_vovnet57b_all", "ese_vovnet99b_all")
default_cfgs = generate_default_cfgs({f"{name}.untrained": _cfg() for name in _NAMES})


if not is_model("ese_vovnet19b"):  # a later timm may have it

    @register_model
    def ese_vovnet19b(pretrained: bool = False, **kwargs: Any) -> VovNet:
        """VoVNetV2-19 (arXiv:1911.06667)."""
        return _create_vovnet_v2("ese_vovnet19b", pretrained, **kwargs)


@register_model
def ese_vovnet39b_all(pretrained: bool = False, **kwargs: Any) -> VovNet:
    """VoVNetV2-39 (arXiv:1911.06667) with the attention in every block, as published."""
    return _create_vovnet_v2("ese_vovnet39b_all", pretrained, **kwargs)


@register_model
def ese_vovnet57b_all(pretrained: bool = False, **kwargs: Any) -> VovNet:
    """VoVNetV2-57 (arXiv:1911.06667) with the attention in every block, as published."""
    return _create_vovnet_v2("ese_vovnet57b_all", pretrained, **kwargs)


@register_model
def ese_vovnet99b_all(pretrained: bool = False, **kwargs: Any) -> VovNet:
    """VoVNetV2-99 (arXiv:1911.06667) with the attention in every block, as published."""
    return _create_vovnet_v2("ese_vovnet99b_all", pretrained, **kwargs)
