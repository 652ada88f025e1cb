"""``vovnet.fuse``: an inference copy of a model with norms folded into convolutions and fused OSA blocks.

The model is walked from the top. A module whose exact class has a builder is replaced by what the builder returns;
otherwise its children are visited. Convolutions that are left are fused where they stand
(:mod:`vovnet.fusion.plain`). The copy is made by ``copy.deepcopy`` with the replacements as its memo, so that
everything that refers to a replaced module, as timm's feature extractors and torchvision's detectors do, then refers
to the replacement.
"""

from __future__ import annotations

import copy
import logging
import warnings
from typing import TypeVar

import torch
from torch import nn

import vovnet.fusion.residual  # noqa: F401 (registers its builder)
from vovnet.errors import InputError, reason
from vovnet.fusion.base import FusedLayer, kernels_available, warn_if_unsupported
from vovnet.fusion.folding import NormStays, NotFusable, Settings, builder_of
from vovnet.fusion.layers import FusedOsaBlock
from vovnet.fusion.plain import cast_inputs, fuse_plain_convs
from vovnet.fusion.sequences import chain_sequences
from vovnet.memory.layers import plain_layers
from vovnet.modules import has_hooks_or_patched_forward
from vovnet.ops.algorithms import ALGORITHMS, PRECISIONS, Algorithm, Precision

M = TypeVar("M", bound=nn.Module)

_log = logging.getLogger("vovnet")


def fuse(model: M, precision: Precision = "fp32", algorithm: Algorithm = "auto") -> M:
    """Return a copy of a model for fast inference on a CPU. The model itself is not changed.

    Takes the networks of this package, timm's ``vovnet*`` and ``ese_vovnet*``, and other models in which batch norms
    and ReLUs follow convolutions: as classifiers, with ``features_only``, with a segmentation decoder, and inside
    torchvision's detectors, whose pyramid, heads and pooling are fused, too. Inputs, outputs and attributes stay the
    same. The state dict does not: save the original's. The copy has the weights of this moment; fuse again after
    changing them.

    Args:
        model: the model to copy. Its norms are folded as they compute in evaluation mode. Modules that are unknown
            or have hooks are copied unchanged, and one warning names them.
        precision: ``fp32``, or ``bf16`` for bfloat16 products and feature maps. A ``bf16`` copy takes float32 and
            bfloat16 images. Its feature maps are bfloat16; logits and detections are float32, and so are pyramids,
            except in a detector of which all that reads the pyramid is fused.
        algorithm: ``auto``, or ``direct`` to exclude Winograd's transforms.

    Returns:
        A copy in evaluation mode. Its parameters require no gradients; its inputs may.

    Raises:
        InputError: the model cannot be copied or is already fused with other settings, or another argument has an
            unknown value.
        BuildError: a RuntimeError; ``VOVNET_OPS=require`` is set and the kernels cannot be built or loaded.
    """
    _check(model, precision, algorithm)
    has_detector = _has_detector_parts(model)
    if has_detector:
        import vovnet.fusion.detectors  # registers its builders
    fuser = _Fuser(Settings(precision, algorithm))
    # Tensors made in inference mode would block the gradients of the input.
    with torch.inference_mode(False), torch.no_grad():
        fuser.visit("", model)
        try:
            fused = copy.deepcopy(model, dict(fuser.replaced))
        except Exception as error:
            raise InputError(
                f"model: this {type(model).__name__} cannot be copied ({reason(error)}); remove what cannot, as weight "
                "norm (torch.nn.utils.remove_weight_norm)"
            ) from error
        plain_layers(fused.requires_grad_(False).eval())
        fuse_plain_convs(fused, fuser.settings)
        _prepare_unfused(fused, precision)
    if has_detector and precision == "bf16":
        vovnet.fusion.detectors.cast_backbone_outputs(fused)
    chain_sequences(fused)
    if notes := _notes(model, fused, fuser):
        _log.info("vovnet.fuse: %s", "; ".join(notes))
        warnings.warn(f"vovnet.fuse: {'; '.join(notes)}", stacklevel=2)
    layers = [module for module in fused.modules() if isinstance(module, FusedLayer)]
    for layer in layers[:1]:
        warn_if_unsupported(layer.weight)
        if layer.weight.device.type == "cpu":
            kernels_available()  # builds the kernels now rather than in the first call
    return fused


def _check(model: object, precision: object, algorithm: object) -> None:
    for name, value, allowed in (("precision", precision, PRECISIONS), ("algorithm", algorithm, ALGORITHMS)):
        if not isinstance(value, str) or value not in allowed:
            raise InputError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")
    if not isinstance(model, nn.Module):
        raise InputError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, torch.jit.ScriptModule) or hasattr(model, "_orig_mod"):
        raise InputError("model: it is compiled already; fuse the model itself, and compile the copy")
    found = [module for module in model.modules() if isinstance(module, FusedLayer)]
    low = any(layer.precision == "bf16" for layer in found)  # the predictors of a bf16 detector are fp32
    if found and ("bf16" if low else "fp32", found[0].algorithm) != (precision, algorithm):
        raise InputError(
            f"model: it is fused already, with precision='{'bf16' if low else 'fp32'}' and algorithm="
            f"'{found[0].algorithm}'; fuse the original"
        )
    if isinstance(model, nn.parallel.DistributedDataParallel | nn.DataParallel):
        raise InputError(f"model: expected a model, got a {type(model).__name__} around it; give model.module")


def _has_detector_parts(model: nn.Module) -> bool:
    """True if a class in the model, or a base of one, comes from torchvision's detectors or their operators."""
    packages = ("torchvision.models.detection.", "torchvision.ops.")
    kinds = {kind for module in model.modules() for kind in type(module).__mro__}
    return any(kind.__module__.startswith(packages) for kind in kinds)


class _Fuser:
    """Walks through a model and builds the replacements."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.replaced: dict[int, nn.Module] = {}
        """The replacement of a module, by the module's ``id``."""
        self.left: dict[str, str] = {}
        """Why a module that has a builder is not replaced, by the module's name."""

    def visit(self, name: str, module: nn.Module) -> None:
        """Build the replacement of a module, or else of its children."""
        if id(module) in self.replaced or isinstance(module, FusedLayer | FusedOsaBlock):
            return
        build, label, why = builder_of(module), name or type(module).__name__, ""
        if build is not None and has_hooks_or_patched_forward(module):
            self.left[label] = "hooks or its own forward"
        elif build is not None:
            try:
                self.replaced[id(module)] = build(module, self.settings)
                return
            except NotFusable as error:
                why = "" if isinstance(error, NormStays) else error.reason
        before = len(self.left)
        for child_name, child in module.named_children():
            self.visit(f"{name}.{child_name}".lstrip("."), child)
        if why and why not in list(self.left.values())[before:]:  # a child with the same reason is the cause
            self.left[label] = why


def _prepare_unfused(fused: nn.Module, precision: Precision) -> None:
    """Prepare the modules that are not fused, in place.

    They recompute nothing and have channels-last weights. In a bf16 copy they compute in float32.
    """
    for module in fused.modules():
        if hasattr(module, "grad_checkpointing"):
            setattr(module, "grad_checkpointing", False)  # noqa: B010 (nn.Module's stubs allow no plain attributes)
        if isinstance(module, FusedLayer):
            continue
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            module.to(memory_format=torch.channels_last)
        if precision == "bf16" and next(module.parameters(recurse=False), None) is not None:
            module.float().register_forward_pre_hook(cast_inputs, with_kwargs=True)


def _notes(model: nn.Module, fused: nn.Module, fuser: _Fuser) -> list[str]:
    """Return what the caller should know."""
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
