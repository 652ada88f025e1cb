"""``vovnet.fuse``: an inference copy of a model with norms folded into convolutions and whole blocks in one call.

Modules are looked at by their exact type. What stands for one is built from its weights, and takes its place while the
rest of the model is copied around it: whoever refers to the module, such as timm's feature extractors and torchvision's
detectors, then refers to what replaced it.
"""

from __future__ import annotations

import copy
import logging
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

import timm.models.vovnet as timm_vovnet
import torch
from timm.layers import ConvNormAct as TimmConvNormAct
from timm.layers import SeparableConvNormAct
from torch import Tensor, nn
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.detection.ssd import SSD
from torchvision.ops import Conv2dNormActivation, FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from vovnet.errors import InputError, reason
from vovnet.fusion.base import FusedLayer, compiled, warn_if_plain
from vovnet.fusion.detectors import (
    FusedBoxHead,
    FusedBoxPredictor,
    FusedMaskPredictor,
    FusedPyramid,
    FusedRoIAlign,
    FusedRpnHead,
    widened,
)
from vovnet.fusion.folding import NORMS, ONE_BY_ONE, as_computed, fold, joined
from vovnet.fusion.layers import FusedConv, FusedLinear, FusedMaxPool2d, FusedOsaBlock
from vovnet.fusion.sequences import chain
from vovnet.memory.layers import (
    MemoryEfficientConvNormAct,
    MemoryEfficientMaxPool2d,
    MemoryEfficientOsaBlock,
    MemoryEfficientTimmConvNormAct,
    MemoryEfficientTimmOsaBlock,
    plain_layers,
)
from vovnet.modules import has_hooks_or_patched_forward, is_identity_in_eval, to_pair
from vovnet.ops.algorithms import ALGORITHMS, PRECISIONS
from vovnet.vovnet import ConvNormAct, OsaBlock

_log = logging.getLogger("vovnet")


def fuse(model: nn.Module, precision: str = "fp32", algorithm: str = "auto") -> nn.Module:
    """A copy of a model for fast inference on a CPU. The model itself is not changed.

    Takes our networks, timm's ``vovnet*`` and ``ese_vovnet*``, and whatever else is made of timm's ``ConvNormAct`` or
    torchvision's ``Conv2dNormActivation``; as classifiers, with ``features_only``, and inside of torchvision's
    detectors, whose pyramid, heads and pooling are fused, too. Inputs, outputs and attributes stay; the state dict does
    not: save the original's. The copy has the weights of this moment, so fuse again after changing them.

    Args:
        model: its norms are taken as in evaluation. What is not known, or has hooks, is copied as it is, and one
            warning says which and why.
        precision: ``fp32``; or ``bf16`` for products of bfloat16 numbers and maps in bfloat16. The copy then takes
            float32 and bfloat16 images; feature maps are bfloat16; logits, pyramids and detections are float32.
        algorithm: ``auto``; or ``direct`` for neither Winograd nor Strassen.

    Returns:
        A copy in evaluation mode, whose parameters require no gradients. Its inputs may.

    Raises:
        InputError: the model cannot be copied or is fused already in another way, or another argument has an unknown
            value.
        BuildError: a RuntimeError, where ``VOVNET_OPS=require`` and the kernels cannot be had.
    """
    _check(model, precision, algorithm)
    fuser = _Fuser(precision, algorithm)
    # Tensors of inference mode would let no gradients of the input through.
    with torch.inference_mode(False), torch.no_grad():
        fuser.visit("", model)
        try:
            fused: nn.Module = copy.deepcopy(model, dict(fuser.replaced))
        except Exception as error:
            raise InputError(
                f"model: this {type(model).__name__} cannot be copied ({reason(error)}); remove what cannot, as weight "
                "norm (torch.nn.utils.remove_weight_norm)"
            ) from error
        _finish(fused.requires_grad_(False).eval(), precision)
    chain(fused)
    if notes := _notes(model, fused, fuser):
        _log.info("vovnet.fuse: %s", "; ".join(notes))
        warnings.warn(f"vovnet.fuse: {'; '.join(notes)}", stacklevel=2)
    layers = [module for module in fused.modules() if isinstance(module, FusedLayer)]
    for parameter in (next(layer.parameters()) for layer in layers[:1]):
        warn_if_plain(parameter)
        if parameter.device.type == "cpu":
            compiled()  # a compiler starts here rather than in the first call
    return fused


def _check(model: Any, precision: Any, algorithm: Any) -> None:
    for name, value, allowed in (("precision", precision, PRECISIONS), ("algorithm", algorithm, ALGORITHMS)):
        if not isinstance(value, str) or value not in allowed:
            raise InputError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    if not isinstance(model, nn.Module):
        raise InputError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):
        raise InputError("model: it is compiled already; fuse the model itself, and compile the copy")
    found = [module for module in model.modules() if isinstance(module, FusedLayer)]
    low = any(layer.precision == "bf16" for layer in found)  # a detector's predictors are fp32 among them
    if found and ("bf16" if low else "fp32", found[0].algorithm) != (precision, algorithm):
        raise InputError(
            f"model: it is fused already, with precision='{'bf16' if low else 'fp32'}' and algorithm="
            f"'{found[0].algorithm}'; fuse the original"
        )
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise InputError(f"model: expected a model, got a {type(model).__name__} around it; give model.module")


class _Fuser:
    """Walks through a model and builds what is put in."""

    def __init__(self, precision: str, algorithm: str) -> None:
        self.precision = precision
        self.algorithm = algorithm
        self.replaced: dict[int, nn.Module] = {}
        """What stands for a module, by the module's identity."""
        self.left: dict[str, str] = {}
        """Names of modules that stay, though of a known kind, and why."""

    def visit(self, name: str, module: nn.Module) -> None:
        """Find what stands for a module, or else for its parts."""
        if id(module) in self.replaced or isinstance(module, FusedLayer | FusedOsaBlock):
            return
        build = _BUILDERS.get(type(module))
        found: Any = None
        if build is not None:
            found = "hooks or its own forward" if has_hooks_or_patched_forward(module) else build(self, module)
        if isinstance(found, nn.Module):
            self.replaced[id(module)] = found
            return
        if found is not None:
            self.left[name or type(module).__name__] = found
        for child_name, child in module.named_children():
            self.visit(f"{name}.{child_name}".lstrip("."), child)

    def fold(self, conv: Any, norm: Any = None, act: Any = None) -> Any:
        """A FusedConv or a text."""
        return fold(conv, norm, act, self.precision, self.algorithm)

    def conv_norm_act(self, layer: Any) -> Any:
        """A convolution, a norm, an activation (our layers'), and perhaps anti-aliasing (timm's)."""
        folded = self.fold(layer.conv, layer.bn, getattr(layer, "act", None))
        if isinstance(folded, str) or is_identity_in_eval(layer.aa):
            return folded
        return nn.Sequential(folded, copy.deepcopy(layer.aa))

    def separable(self, layer: Any) -> Any:
        """timm's depthwise and pointwise convolutions."""
        parts = [self.fold(layer.conv_dw), self.fold(layer.conv_pw, layer.bn)]
        return next((part for part in parts if isinstance(part, str)), nn.Sequential(*parts))

    def conv_norm_activation(self, layer: Any) -> Any:
        """torchvision's convolution, and perhaps a norm and an activation."""
        conv, *rest = layer
        norm = rest.pop(0) if rest and isinstance(rest[0], (*NORMS, nn.GroupNorm)) else None
        if len(rest) > 1:
            return f"its parts are {', '.join(type(part).__name__ for part in layer)}"
        return self.fold(conv, norm, rest[0] if rest else None)

    def max_pool(self, pool: Any) -> Any:
        """A max-pool without indices and dilation."""
        kernel, stride, padding, dilation = map(to_pair, (pool.kernel_size, pool.stride, pool.padding, pool.dilation))
        if dilation != [1, 1] or pool.return_indices:
            return "dilation or indices"
        return FusedMaxPool2d(kernel, stride, padding, pool.ceil_mode)

    def osa_block(self, block: Any) -> Any:
        """Our block; None leaves it to its parts."""
        return self._block(block, block.identity, None) if is_identity_in_eval(block.drop_path) else None

    def timm_osa_block(self, block: Any) -> Any:
        """timm's block; None leaves it to its parts, as one with depthwise convolutions."""
        if block.conv_reduction is not None or not is_identity_in_eval(block.drop_path):
            return None
        return self._block(block, block.residual, block.attn)

    def _block(self, block: Any, identity: bool, attn: nn.Module | None) -> Any:
        layers = [*block.conv_mid, block.conv_concat]
        if any(type(layer) not in _CONVS for layer in layers):
            return None
        if any(map(has_hooks_or_patched_forward, (block.conv_mid, *layers))):
            return None
        convs = [self.conv_norm_act(layer) for layer in layers]
        if not all(isinstance(conv, FusedConv) for conv in convs):
            return None
        return FusedOsaBlock(convs[:-1], convs[-1], identity=identity, attn=copy.deepcopy(attn))

    def pyramid(self, fpn: Any) -> Any:
        """torchvision's pyramid; None leaves it to its parts."""
        layers = [*fpn.inner_blocks, *fpn.layer_blocks]
        if any(type(layer) is not Conv2dNormActivation or has_hooks_or_patched_forward(layer) for layer in layers):
            return None
        convs = [self.conv_norm_activation(layer) for layer in layers]
        if not all(isinstance(conv, FusedConv) for conv in convs):
            return None
        extra, parts = fpn.extra_blocks, {}
        if type(extra) is LastLevelP6P7:
            folded = {id(conv): self.fold(conv) for conv in (extra.p6, extra.p7)}
            parts = {key: conv for key, conv in folded.items() if isinstance(conv, FusedConv)}
        half = len(fpn.inner_blocks)
        return FusedPyramid(convs[:half], convs[half:], copy.deepcopy(extra, parts))

    def rpn_head(self, head: Any) -> Any:
        """torchvision's head; its predictors stay in float32."""
        predictor = joined([head.cls_logits, head.bbox_pred], "fp32", self.algorithm)
        convs = [self.conv_norm_activation(layer) for layer in head.conv if type(layer) is Conv2dNormActivation]
        texts = [part for part in (predictor, *convs) if isinstance(part, str)]
        if texts or len(convs) < len(head.conv) or any(map(has_hooks_or_patched_forward, (head.conv, *head.conv))):
            return texts[0] if texts else None
        return FusedRpnHead(nn.Sequential(*convs), predictor, head.cls_logits.out_channels)

    def box_head(self, head: Any) -> Any:
        """torchvision's two linear layers with ReLUs."""
        layers = (head.fc6, head.fc7)
        linear = all(type(layer) is nn.Linear and layer.bias is not None for layer in layers)
        if not linear or any(map(has_hooks_or_patched_forward, layers)):
            return "its layers are not plain linear ones with biases"
        return FusedBoxHead(self._linear(head.fc6), self._linear(head.fc7))

    def _linear(self, layer: nn.Linear) -> FusedLinear:
        weight, bias = (as_computed(p.detach().clone(), self.precision) for p in (layer.weight, layer.bias))
        return FusedLinear(weight, bias, relu=True, precision=self.precision, algorithm=self.algorithm)

    def box_predictor(self, predictor: Any) -> Any:
        """torchvision's predictor, in float32."""
        linear = joined([predictor.cls_score, predictor.bbox_pred], "fp32", self.algorithm)
        if isinstance(linear, str):
            return linear
        return FusedBoxPredictor(linear, predictor.cls_score.out_features)

    def mask_predictor(self, predictor: Any) -> Any:
        """torchvision's transposed convolution of 2×2 with stride 2, and its predictor, in float32."""
        up: Any = predictor.conv5_mask
        usual = type(up) is nn.ConvTranspose2d and (up.kernel_size, up.stride, up.groups) == ((2, 2), (2, 2), 1)
        tight = usual and (up.padding, up.output_padding, up.dilation) == ((0, 0), (0, 0), (1, 1))
        if not tight or up.bias is None:
            return "its transposed convolution is not a plain one of 2×2 with stride 2 and a bias"
        logits = fold(predictor.mask_fcn_logits, None, None, "fp32", self.algorithm)
        if isinstance(logits, str) or has_hooks_or_patched_forward(up) or has_hooks_or_patched_forward(predictor.relu):
            return logits if isinstance(logits, str) else "hooks or a forward of its own"
        # (C, out, 2, 2) -> (4 · out, C, 1, 1): an output's four places are neighbouring channels, as pixel_shuffle
        # wants them.
        weight = up.weight.detach().flatten(1).t().clone()[:, :, None, None]
        bias = up.bias.detach().repeat_interleave(4)
        conv = FusedConv(
            as_computed(weight, self.precision),
            as_computed(bias, self.precision),
            ONE_BY_ONE,
            relu=True,
            precision=self.precision,
            algorithm=self.algorithm,
        )
        return FusedMaskPredictor(conv, logits)

    def roi_align(self, pool: Any) -> Any:
        """torchvision's pooling, with the scales and levels that it has."""
        found = copy.deepcopy(pool)
        found.__class__ = FusedRoIAlign
        return found


_CONVS = (ConvNormAct, MemoryEfficientConvNormAct, TimmConvNormAct, MemoryEfficientTimmConvNormAct)
_BUILDERS: dict[type[nn.Module], Callable[[_Fuser, Any], Any]] = {
    **dict.fromkeys(_CONVS, _Fuser.conv_norm_act),
    SeparableConvNormAct: _Fuser.separable,
    Conv2dNormActivation: _Fuser.conv_norm_activation,
    nn.MaxPool2d: _Fuser.max_pool,
    MemoryEfficientMaxPool2d: _Fuser.max_pool,
    OsaBlock: _Fuser.osa_block,
    MemoryEfficientOsaBlock: _Fuser.osa_block,
    timm_vovnet.OsaBlock: _Fuser.timm_osa_block,
    MemoryEfficientTimmOsaBlock: _Fuser.timm_osa_block,
    FeaturePyramidNetwork: _Fuser.pyramid,
    RPNHead: _Fuser.rpn_head,
    TwoMLPHead: _Fuser.box_head,
    FastRCNNPredictor: _Fuser.box_predictor,
    MaskRCNNPredictor: _Fuser.mask_predictor,
    MultiScaleRoIAlign: _Fuser.roi_align,
}
"""What builds the module that stands for one of a type: a text says why there is none, None leaves it to its parts."""


_DETECTORS = (GeneralizedRCNN, RetinaNet, FCOS, SSD)


def _finish(fused: nn.Module, precision: str) -> None:
    """What is not fused: plain layers, channels-last, without recomputation, and in float32 among bfloat16 maps."""
    plain_layers(fused)
    for module in fused.modules():
        if hasattr(module, "grad_checkpointing"):
            setattr(module, "grad_checkpointing", False)  # noqa: B010 (the stubs of nn.Module know no plain attributes)
        if isinstance(module, FusedLayer):
            continue
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to(memory_format=torch.channels_last)
        if precision == "bf16" and next(module.parameters(recurse=False), None) is not None:
            module.float().register_forward_pre_hook(_widen, with_kwargs=True)
        if precision == "bf16" and isinstance(module, _DETECTORS):
            module.backbone.register_forward_hook(_widen_maps)


def _widen(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A layer's inputs that are bfloat16, in the type of its parameters."""
    dtype = next(module.parameters(recurse=False)).dtype

    def wide(x: Any) -> Any:
        return x.to(dtype) if isinstance(x, Tensor) and x.dtype == torch.bfloat16 else x

    return tuple(map(wide, inputs)), {name: wide(x) for name, x in named.items()}


def _widen_maps(module: nn.Module, inputs: tuple[Any, ...], maps: Any) -> Any:
    """A detector's maps: the anchors, and so the boxes, have their type."""
    if isinstance(maps, Tensor):
        return widened(maps)
    return OrderedDict((name, widened(x)) for name, x in maps.items()) if isinstance(maps, Mapping) else maps


def _notes(model: nn.Module, fused: nn.Module, fuser: _Fuser) -> list[str]:
    """What the caller should know, each in half a sentence."""
    notes = []
    if any(module.training for module in model.modules()):
        notes.append("the model is in training mode, the copy computes as after model.eval()")
    if not fuser.replaced and not any(isinstance(module, FusedLayer) for module in fused.modules()):
        notes.append(f"nothing in this {type(model).__name__} is fused")
    by_reason: dict[str, list[str]] = {}
    for name, why in fuser.left.items():
        by_reason.setdefault(why, []).append(name)
    for name, module in fused.named_modules():
        unknown = isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)
        if unknown and not any(f"{name}.".startswith(f"{known}.") for known in fuser.left):
            by_reason.setdefault("convolutions of layers that vovnet.fuse does not know", []).append(name)
    for why, names in by_reason.items():
        some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        notes.append(f"left as they are: {some} ({why})")
    return notes
