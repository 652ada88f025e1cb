"""Turn any timm model with ``features_only`` into the backbone of a torchvision detector."""

from vovnet.adapters.fpn import FpnBackbone, fpn_backbone

__all__ = ["FpnBackbone", "fpn_backbone"]
