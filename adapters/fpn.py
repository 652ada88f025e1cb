"""Feature pyramids (arXiv:1612.03144) on timm's feature maps, for torchvision's detectors."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from vovnet.adapters.features import Features, features_by_name, features_of_instance, verify_features
from vovnet.adapters.freezing import freeze_stages
from vovnet.adapters.levels import PYRAMID_STRIDES
from vovnet.adapters.norms import FpnNorm, Norm, convert_norms, norm_layer
from vovnet.adapters.outputs import with_outputs
from vovnet.errors import InputError

_log = logging.getLogger("vovnet")

ExtraLevel = Literal["pool", "p6p7", "p6p7_c5"]
_LEVEL_NAMES: dict[ExtraLevel | None, tuple[str, ...]] = {
    None: (),
    "pool": ("pool",),
    "p6p7": ("p6", "p7"),
    "p6p7_c5": ("p6", "p7"),
}
"""torchvision's names for the levels behind the backbone's own."""


class FpnBackbone(nn.Module):
    """A timm feature extractor (``body``) and torchvision's pyramid (``fpn``): the backbone of a torchvision detector.

    Attributes:
        out_channels: channels of every level; a list with the channels of each level if ``per_level_channels``.
        level_names: ``("0", "1", …)`` for the backbone's levels, then ``"pool"`` or ``"p6"``, ``"p7"``.
        roi_level_names: the names of the backbone's own levels. Boxes are pooled from these.
        strides: stride in pixels of every level in ``level_names``.
        mean: mean of each channel, for images in 0..1. The detector normalises with it.
        std: standard deviation of each channel, for images in 0..1. The detector normalises with it.
        in_chans: channels of an image.
        norm_report: one line that says what was done with the backbone's norms.
    """

    def __init__(
        self,
        features: Features,
        *,
        out_channels: int,
        extra_level: ExtraLevel | None,
        fpn_norm: FpnNorm | None,
        per_level_channels: bool = False,
    ) -> None:
        super().__init__()
        extra_block = _extra_block(extra_level, features.channels[-1], out_channels)
        self.body = features.net
        self.fpn = FeaturePyramidNetwork(list(features.channels), out_channels, extra_block, norm_layer(fpn_norm))
        extra = _LEVEL_NAMES[extra_level]
        deepest = features.strides[-1]
        self.roi_level_names = tuple(str(i) for i in range(len(features.strides)))
        self.level_names = self.roi_level_names + extra
        self.out_channels = out_channels
        if per_level_channels:
            self.out_channels = [out_channels] * len(self.level_names)  # type: ignore[assignment]
        self.strides = features.strides + tuple(deepest * 2 ** (i + 1) for i in range(len(extra)))
        self.mean = features.mean
        self.std = features.std
        self.in_chans = features.in_chans
        self.norm_report = ""
        self._positions = list(features.positions)
        self._channels_last = features.channels_last

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Return ``{level: (N, out_channels, H / stride, W / stride)}`` of normalised images (N, in_chans, H, W)."""
        maps = self.body(images)
        levels: dict[str, Tensor] = {}
        for level, position in enumerate(self._positions):
            feature = maps[position]
            if self._channels_last:
                feature = feature.permute(0, 3, 1, 2)
            levels[str(level)] = feature
        return self.fpn(levels)


def _extra_block(extra_level: ExtraLevel | None, deepest: int, out_channels: int) -> ExtraFPNBlock | None:
    if extra_level is None:
        return None
    if extra_level == "pool":
        return LastLevelMaxPool()
    block = LastLevelP6P7(deepest if extra_level == "p6p7_c5" else out_channels, out_channels)
    block.use_P5 = extra_level == "p6p7"  # torchvision decides by the numbers of channels, which may be equal
    return block


def fpn_backbone(
    model_or_name: str | nn.Module,
    *,
    pretrained: bool = False,
    out_indices: Sequence[int] | None = None,
    out_channels: int = 256,
    extra_level: ExtraLevel | None = "pool",
    norm: Norm = "frozen_bn",
    trainable_stages: int | None = None,
    fpn_norm: FpnNorm | None = None,
    in_chans: int | None = None,
    backbone_args: Mapping[str, Any] | None = None,
    force_norm: bool = False,
    download: bool = True,
    norm_eps: float | None = None,
    out_modules: Sequence[str] | None = None,
    strides: Sequence[int] = PYRAMID_STRIDES,
    per_level_channels: bool = False,
) -> FpnBackbone:
    """Turn any timm model with ``features_only`` into a torchvision detection backbone with a feature pyramid.

    One small black image goes through the model, to check that its maps have the channels and strides that timm says.

    Choose the norms with ``norm``, which keeps the activations. Do not convert the norms by class afterwards, for
    example with ``torch.nn.SyncBatchNorm.convert_sync_batchnorm``: many timm models hide their activations in their
    norms (``BatchNormAct2d``), and such converters drop them without a warning.

    Args:
        model_or_name: a timm model's name (``vovnet39``, ``resnet50.a1_in1k``), or an instance: one made with
            ``features_only=True``, or a classifier with ``forward_intermediates``. An instance becomes part of the
            backbone and is changed.
        pretrained: start from timm's pretrained weights; for an instance, True says that its weights are trained ones.
        out_indices: indices of the feature maps to take, from the finest; each stride must be twice the previous one.
            None takes the last map with each of ``strides``.
        out_channels: channels of every pyramid level.
        extra_level: ``pool`` adds one level by subsampling, ``p6p7`` two by strided convolutions of the pyramid's last
            level, ``p6p7_c5`` two by strided convolutions of the backbone's last map, None no level.
        norm: what to do with the backbone's batch norms. ``frozen_bn`` fixes them if the weights are pretrained, and
            otherwise warns; ``bn`` lets them train; ``sync_bn`` shares their statistics between processes (on GPUs
            only); ``gn`` replaces them by group norms. Norms of other kinds stay as they are.
        trainable_stages: how many of the last stages train; a stage ends at each map of timm's ``feature_info``. None
            trains all.
        fpn_norm: norm of the pyramid: ``bn``, ``sync_bn``, ``gn``, or None for none, as in the paper.
        in_chans: channels of an image; None takes the model's own.
        backbone_args: more arguments of the timm model, such as ``{"drop_path_rate": 0.1}``.
        force_norm: allow ``gn`` to replace batch norms of pretrained weights.
        download: False does not load pretrained weights even if ``pretrained`` is set, for a caller that loads other
            weights over them; norms and stages are frozen all the same.
        norm_eps: epsilon of the backbone's batch norms; None keeps the model's.
        out_modules: names of modules whose outputs are the feature maps, such as ``["blocks.5.0", "blocks.6"]``, if
            timm has none there; None takes timm's maps.
        strides: strides of the pyramid's levels in pixels, each twice the previous one. torchvision's RetinaNet and
            FCOS take 8, 16 and 32.
        per_level_channels: make ``out_channels`` of the backbone a list with a number for each level, as torchvision's
            ``SSD`` takes it; its other detectors take one number.

    Raises:
        InputError: a value is out of its range, or the model lacks the maps that a pyramid needs.
        TypeError: ``backbone_args`` names no argument of the model.
    """
    if out_indices is not None and out_modules is not None:
        raise InputError("out_indices and out_modules both choose the feature maps; give one of them")
    _check_choices(norm=norm, extra_level=extra_level, fpn_norm=fpn_norm, out_channels=out_channels)
    if isinstance(model_or_name, str):
        features = features_by_name(
            model_or_name,
            pretrained=pretrained,
            download=download,
            out_indices=out_indices,
            in_chans=in_chans,
            backbone_args=backbone_args or {},
            whole=out_modules is not None,
            strides=strides,
        )
        if out_modules is not None:
            features = with_outputs(features, out_modules)
    elif isinstance(model_or_name, nn.Module):
        if backbone_args:
            raise InputError("backbone_args are for a model that is made from a name; this one exists already")
        if out_modules is not None:
            raise InputError("out_modules are for a model that is made from a name; this one returns its own maps")
        features = features_of_instance(
            model_or_name, pretrained=pretrained, out_indices=out_indices, in_chans=in_chans, strides=strides
        )
    else:
        raise InputError(f"expected a timm model or its name, got {type(model_or_name).__name__}")
    report, complete = convert_norms(features.net, norm, pretrained=features.pretrained, force=force_norm, eps=norm_eps)
    notes = [] if complete else [report]
    if trainable_stages is not None:
        notes += _freeze(features, trainable_stages)
    verify_features(features)
    _log.info("%s: %s", features.name, report)
    for note in notes:
        warnings.warn(f"{features.name}: {note}", stacklevel=2)
    backbone = FpnBackbone(
        features,
        out_channels=out_channels,
        extra_level=extra_level,
        fpn_norm=fpn_norm,
        per_level_channels=per_level_channels,
    )
    backbone.norm_report = report
    return backbone


def _check_choices(*, norm: str, extra_level: str | None, fpn_norm: str | None, out_channels: int) -> None:
    choices: tuple[tuple[str, object, tuple[object, ...]], ...] = (
        ("norm", norm, get_args(Norm)),
        ("extra_level", extra_level, (None, *get_args(ExtraLevel))),
        ("fpn_norm", fpn_norm, (None, *get_args(FpnNorm))),
    )
    for argument, value, allowed in choices:
        if value not in allowed:
            raise InputError(f"{argument} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    if isinstance(out_channels, bool) or not isinstance(out_channels, int) or out_channels < 1:
        raise InputError(f"out_channels must be a positive integer, got {out_channels!r}")


def _freeze(features: Features, trainable_stages: int) -> list[str]:
    """Freeze all but the last stages; return warnings for the user."""
    stages = freeze_stages(features.net, features.taps, trainable_stages, pretrained=features.pretrained)
    if features.pretrained or trainable_stages == stages:
        return []
    return [
        f"{stages - trainable_stages} of {stages} stages do not train, and their weights are random unless you load "
        "trained ones; trainable_stages=None trains all"
    ]
