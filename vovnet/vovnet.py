"""VoVNet V1: One-Shot Aggregation networks as timm models.

Paper: An Energy and GPU-Computation Efficient Backbone Network for Real-Time Object Detection,
https://arxiv.org/abs/1904.09730. The authors' networks and ImageNet weights:
https://github.com/stigma0617/VoVNet.pytorch.

In every block of a stage but the first, the authors add the block's input to the aggregation's output. So do the
networks here. timm's own ``vovnet39a`` and ``vovnet57a`` do not: the authors' weights load into them without an error,
but the results are different. The state-dict keys are those of timm's ``VovNet``, so this class and timm's with
``residual=True`` read each other's files.

Weights are initialised as the authors do it: Kaiming normal over the fan-in for convolutions, zero for the classifier's
bias.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import BatchNormAct2d, ClassifierHead, DropPath, calculate_drop_path_rates, get_device_dtype
from timm.layers import ConvNormAct as TimmConvNormAct
from timm.layers.typing import LayerType
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from vovnet.arguments import check_head, check_input, check_layers, check_rates, check_widths
from vovnet.checkpoints.pretrained import pretrained_source
from vovnet.checkpoints.sources import IMAGENET_SOURCES, Source
from vovnet.errors import InputError

# timm adds the entry points.
__all__ = ["ConvNormAct", "OsaBlock", "OsaStage", "VoVNet", "checkpoint_filter_fn", "published_keys", "pytorchcv_keys"]


class ConvNormAct(TimmConvNormAct):
    """Convolution, norm and activation, with the keys of timm's ``ConvNormAct``.

    timm's layer hides the activation inside the norm (``BatchNormAct2d``), where a converter that replaces batch norms
    by class drops it: ``torch.nn.SyncBatchNorm.convert_sync_batchnorm``, transformers' frozen batch norms and others.
    Here a batch norm and its activation are two modules. A norm of another class keeps the activation that timm gives
    it, and ``act`` is then an identity.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: height and width of the kernel.
        stride: stride of the convolution.
        dilation: dilation of the convolution.
        norm_layer: a norm class or a name that timm knows.
        act_layer: an activation class or a name that timm knows.
        device: where the parameters are created.
        dtype: type of the parameters.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        dilation: int = 1,
        norm_layer: LayerType = nn.BatchNorm2d,
        act_layer: LayerType = nn.ReLU,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        layers: dict[str, Any] = {"norm_layer": norm_layer, "act_layer": act_layer, "device": device, "dtype": dtype}
        super().__init__(in_channels, out_channels, kernel_size, stride=stride, dilation=dilation, **layers)
        self.act = nn.Identity()
        separate_activation(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.bn(self.conv(x)))


def separate_activation(layer: TimmConvNormAct) -> None:
    """Move the activation of timm's ``BatchNormAct2d`` to ``layer.act``, in place; other norms keep theirs.

    The norm becomes a plain ``nn.BatchNorm2d`` with the same parameters.
    """
    norm: Any = layer.bn
    layer.act = nn.Identity()
    hidden = type(norm) is BatchNormAct2d
    if hidden and type(norm.drop) is nn.Identity:
        layer.act = norm.act
        del norm.act, norm.drop
        norm.__class__ = nn.BatchNorm2d


class OsaBlock(nn.Module):
    """One-Shot Aggregation block: a chain of 3×3 convolutions and a 1×1 convolution over all of them, concatenated.

    (N, in_chs, H, W) → (N, out_chs, H, W). With ``identity``, the block's input is added **after** the aggregation's
    activation (VoVNet.pytorch, ``_OSA_module.forward``). Only blocks with an identity have drop path, on the aggregated
    branch, because in others it would drop the whole signal.
    """

    def __init__(
        self,
        in_chs: int,
        mid_chs: int,
        out_chs: int,
        layer_per_block: int,
        *,
        identity: bool = False,
        dilation: int = 1,
        drop_path: float = 0.0,
        **layers: Any,  # arguments of ConvNormAct
    ) -> None:
        super().__init__()
        self.identity = identity
        inputs = [in_chs] + [mid_chs] * (layer_per_block - 1)
        self.conv_mid = nn.Sequential(*(ConvNormAct(c, mid_chs, 3, dilation=dilation, **layers) for c in inputs))
        self.conv_concat = ConvNormAct(in_chs + layer_per_block * mid_chs, out_chs, 1, **layers)
        self.drop_path = DropPath(drop_path) if identity and drop_path > 0 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        features = [x]
        for conv in self.conv_mid:
            features.append(conv(features[-1]))
        out = self.conv_concat(torch.cat(features, dim=1))
        if self.identity:
            out = self.drop_path(out) + x
        return out


class OsaStage(nn.Module):
    """Stage of OSA blocks behind a max-pool, which the first stage does not have.

    Every block but the first has an identity. The stride-2 pool (3×3, ceil mode, no padding) maps (N, in_chs, H, W) to
    (N, out_chs, ⌈(H − 1) / 2⌉, ⌈(W − 1) / 2⌉). A dilated stage pools with stride 1 and padding 1 and keeps H and W.
    """

    def __init__(
        self,
        in_chs: int,
        mid_chs: int,
        out_chs: int,
        layer_per_block: int,
        *,
        downsample: bool,
        dilation: int,
        drop_path_rates: Sequence[float],
        **layers: Any,
    ) -> None:
        super().__init__()
        self.grad_checkpointing = False
        pool: nn.Module = nn.Identity()
        if downsample:
            dilated = dilation > 1
            pool = nn.MaxPool2d(3, stride=1 if dilated else 2, padding=1 if dilated else 0, ceil_mode=True)
        self.pool = pool
        blocks = []
        for i, rate in enumerate(drop_path_rates):
            sizes = (out_chs if i else in_chs, mid_chs, out_chs, layer_per_block)
            blocks.append(OsaBlock(*sizes, identity=i > 0, dilation=dilation, drop_path=rate, **layers))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class VoVNet(nn.Module):
    """VoVNet V1: a stem of three 3×3 convolutions and four OSA stages, with features at strides 2, 4, 8, 16 and 32.

    Maps images (N, in_chans, H, W), normalised as ``pretrained_cfg`` says, to logits (N, num_classes).

    Args:
        stem_chs: channels of the stem's three convolutions (strides 2, 1, 2).
        stage_conv_chs: channels of the 3×3 convolutions of each stage.
        stage_out_chs: output channels of each stage.
        block_per_stage: number of OSA blocks in each stage.
        layer_per_block: number of 3×3 convolutions in a block.
        in_chans: channels of the image.
        num_classes: number of classes; 0 for no classifier.
        global_pool: 'avg', 'max', 'avgmax', 'catavgmax', …; '' for no pooling.
        output_stride: 32, 16 or 8. Below 32, the last stages keep their size and use dilation 2 (and 4).
        norm_layer: a norm class or a name that timm knows.
        act_layer: an activation class or a name that timm knows.
        drop_rate: dropout rate before the classifier.
        drop_path_rate: drop-path rate of the last block; it rises linearly from the first. Only blocks with an identity
            use it.
        device: where the parameters are created; 'meta' is possible.
        dtype: type of the parameters.

    Raises:
        InputError: an argument has a value that cannot be used.
    """

    def __init__(
        self,
        stem_chs: Sequence[int] = (64, 64, 128),
        stage_conv_chs: Sequence[int] = (128, 160, 192, 224),
        stage_out_chs: Sequence[int] = (256, 512, 768, 1024),
        block_per_stage: Sequence[int] = (1, 1, 2, 2),
        layer_per_block: int = 5,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        output_stride: int = 32,
        norm_layer: LayerType = nn.BatchNorm2d,
        act_layer: LayerType = nn.ReLU,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_widths(stem_chs, stage_conv_chs, stage_out_chs, block_per_stage, layer_per_block)
        check_input(in_chans, output_stride)
        check_head(num_classes, global_pool)
        check_rates(drop_rate, drop_path_rate)
        check_layers(norm_layer, act_layer)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        placement: dict[str, Any] = {"device": device, "dtype": dtype}
        layers = dict(norm_layer=norm_layer, act_layer=act_layer, **placement)

        self.stem = nn.Sequential(
            ConvNormAct(in_chans, stem_chs[0], 3, stride=2, **layers),
            ConvNormAct(stem_chs[0], stem_chs[1], 3, stride=1, **layers),
            ConvNormAct(stem_chs[1], stem_chs[2], 3, stride=2, **layers),
        )
        info: list[dict[str, Any]] = [{"num_chs": stem_chs[1], "reduction": 2, "module": "stem.1"}]
        drop_paths: Any = calculate_drop_path_rates(drop_path_rate, list(block_per_stage), stagewise=True)
        stages, channels = [], stem_chs[2]
        for i, out_chs in enumerate(stage_out_chs):
            stride = 4 * 2**i
            reduction = min(stride, output_stride)
            sizes = (channels, stage_conv_chs[i], out_chs, layer_per_block)
            dilation, rates = stride // reduction, drop_paths[i]
            stages.append(OsaStage(*sizes, downsample=i > 0, dilation=dilation, drop_path_rates=rates, **layers))
            info.append({"num_chs": out_chs, "reduction": reduction, "module": f"stages.{i}"})
            channels = out_chs
        self.stages = nn.Sequential(*stages)
        self.feature_info = info
        self.num_features = channels
        self.head = ClassifierHead(channels, num_classes, pool_type=global_pool, drop_rate=drop_rate, **placement)
        self.head_hidden_size = self.head.num_features
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Initialise every parameter and buffer, as a model built on 'meta' needs after ``to_empty``."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            else:
                reset: Any = getattr(module, "reset_parameters", None)
                if reset is not None:
                    reset()
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return patterns that group parameters by depth, for timm's layer decay."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.blocks\.(\d+)"}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute each stage again in the backward pass. Batch norms then see a training batch twice."""
        for stage in self.stages.children():
            stage.grad_checkpointing = enable  # type: ignore[assignment]  # a plain bool that nn.Module's stubs forget

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """Return the last layer: an ``nn.Linear``, or an ``nn.Identity`` if there are no classes."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier.

        Args:
            num_classes: number of classes; 0 for no classifier.
            global_pool: pooling before the classifier; None keeps the present one.
        """
        check_head(num_classes, global_pool)
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool, in_features=self.num_features, **get_device_dtype(self))
        self.head_hidden_size = self.head.num_features

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the final feature map and a list of the features of ``feature_info``.

        Args:
            x: (N, in_chans, H, W).
            indices: indices of the features to return; an int n takes the last n, None takes all five.
            norm: has no effect, because there is no final norm; part of timm's interface.
            stop_early: do not run the stages after the last returned feature.
            output_fmt: 'NCHW' only.
            intermediates_only: return only the list.
        """
        if output_fmt != "NCHW":
            raise InputError(f"output_fmt='{output_fmt}': VoVNet's features are 'NCHW' only")  # scripts have no !r
        taken, last = feature_take_indices(5, indices)
        intermediates: list[Tensor] = []
        for i, conv in enumerate(self.stem):
            x = conv(x)
            if i == 1 and 0 in taken:
                intermediates.append(x)
        for i, stage in enumerate(self.stages):
            if i < last or not stop_early:
                x = stage(x)
                if i + 1 in taken:
                    intermediates.append(x)
        if intermediates_only:
            return intermediates
        return x, intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove the layers behind the last of ``indices``, in place; return the indices counted from the start.

        The classifier is removed with ``prune_head``, or if a stage is removed.
        """
        taken, last = feature_take_indices(5, indices)
        shortened = last < len(self.stages)
        self.stages = self.stages[:last]
        if last == 0:
            self.stem[-1] = nn.Identity()  # the first feature is the input of the stem's last convolution
        if shortened:
            self.num_features = self.feature_info[last]["num_chs"]
        if prune_head or shortened:
            self.reset_classifier(0, "")
        return taken

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the final feature map (N, num_features, H / 32, W / 32); the output stride may be other than 32."""
        return self.stages(self.stem(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits of the final feature map, or the classifier's input with ``pre_logits``."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, num_classes) of normalised images (N, in_chans, H, W)."""
        return self.forward_head(self.forward_features(x))


def published_keys(model: VoVNet) -> dict[str, str]:
    """Return the name in the authors' ImageNet files → the name here, for every tensor of ``model`` with batch norms.

    Their names are ``stem.stem_1/conv.weight``, ``stage3.OSA3_1.layers.0.OSA3_1_0/norm.bias``,
    ``stage3.OSA3_1.concat.OSA3_1_concat/conv.weight`` and ``classifier.weight`` (VoVNet.pytorch,
    models_vovnet/vovnet.py).
    """
    keys = {}
    for theirs, ours in published_layers(model).items():
        keys[f"{theirs}/conv.weight"] = f"{ours}.conv.weight"
        keys |= norm_keys(f"{theirs}/norm", f"{ours}.bn")
    return keys | {"classifier.weight": "head.fc.weight", "classifier.bias": "head.fc.bias"}


def pytorchcv_keys(model: VoVNet) -> dict[str, str]:
    """Return the name in pytorchcv's files → the name here, for every tensor of ``model`` with batch norms.

    Its names are ``features.init_block.conv1.conv.weight``, ``features.stage2.unit1.branches.branch1.bn.bias``,
    ``features.stage2.unit1.concat_conv.conv.weight`` and ``output.weight`` (pytorchcv 0.0.74, models/vovnet.py).
    """
    layers = {f"features.init_block.conv{i + 1}": f"stem.{i}" for i in range(len(model.stem))}
    for s, stage in enumerate(model.stages):
        blocks: Any = stage.blocks
        for b, block in enumerate(blocks):
            theirs, ours = f"features.stage{s + 1}.unit{b + 1}", f"stages.{s}.blocks.{b}"
            for i in range(len(block.conv_mid)):
                layers[f"{theirs}.branches.branch{i + 1}"] = f"{ours}.conv_mid.{i}"
            layers[f"{theirs}.concat_conv"] = f"{ours}.conv_concat"
    keys = {}
    for theirs, ours in layers.items():
        keys[f"{theirs}.conv.weight"] = f"{ours}.conv.weight"
        keys |= norm_keys(f"{theirs}.bn", f"{ours}.bn")
    return keys | {"output.weight": "head.fc.weight", "output.bias": "head.fc.bias"}


def published_layers(model: nn.Module) -> dict[str, str]:
    """Return the authors' name → the name here, for the layers that both generations of networks have."""
    net: Any = model
    layers = {f"stem.stem_{i + 1}": f"stem.{i}" for i in range(len(net.stem))}
    for theirs, ours, block in published_blocks(model):
        osa = theirs.rpartition(".")[2]
        for i in range(len(block.conv_mid)):
            layers[f"{theirs}.layers.{i}.{osa}_{i}"] = f"{ours}.conv_mid.{i}"
        layers[f"{theirs}.concat.{osa}_concat"] = f"{ours}.conv_concat"
    return layers


def published_blocks(model: nn.Module) -> Iterator[tuple[str, str, Any]]:
    """Return the authors' name (``stage3.OSA3_1``), the name here, and the module of every OSA block."""
    net: Any = model
    for s, stage in enumerate(net.stages):
        for b, block in enumerate(stage.blocks):
            yield f"stage{s + 2}.OSA{s + 2}_{b + 1}", f"stages.{s}.blocks.{b}", block


_COUNTER = ".num_batches_tracked"


def norm_keys(theirs: str, ours: str) -> dict[str, str]:
    """Return the keys of a batch norm in an authors' file → the keys here."""
    leaves = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"{theirs}.{leaf}": f"{ours}.{leaf}" for leaf in leaves}


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: VoVNet) -> dict[str, Any]:
    """Return the state dict of an ImageNet file of the authors or of pytorchcv with the keys of this model.

    ``{"state_dict": …}`` and ``{"model": …}`` wrappers and a ``module.`` in front of every key are removed. Apart from
    that, a state dict that has this model's keys already stays the same. The classifier and the first convolution may
    have other numbers of classes and input channels, because timm adapts them afterwards.

    Raises:
        InputError: keys of a published file are missing or left over, or its tensors have other shapes. The message
            lists all of them.
    """
    for wrapper in ("state_dict", "model"):
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
    if state_dict and all(key.startswith("module.") for key in state_dict):
        state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    names = _published_names(state_dict, model)
    if names is None:
        return dict(state_dict)
    if not any(key.endswith(_COUNTER) for key in state_dict):  # older than the counters, which load_state_dict fills in
        names = {theirs: ours for theirs, ours in names.items() if not theirs.endswith(_COUNTER)}
    found = {
        "missing": [key for key in names if key not in state_dict],
        "left over": [key for key in state_dict if key not in names],
        "other shapes": _other_shapes({key: state_dict[key] for key in names if key in state_dict}, names, model),
    }
    if problems := "; ".join(f"{what}: {', '.join(keys)}" for what, keys in found.items() if keys):
        raise InputError(
            f"the checkpoint has a published VoVNet's names but does not fit this model ({problems}): "
            "load it into the variant that it was saved from"
        )
    return {names[key]: value for key, value in state_dict.items()}


def _published_names(state_dict: Mapping[str, Any], model: VoVNet) -> dict[str, str] | None:
    """Return the publisher's key → this model's key, or None if the state dict has no publisher's keys."""
    if any("/" in key or key in ("classifier.weight", "classifier.bias") for key in state_dict):
        return published_keys(model)
    if any(key.startswith(("features.init_block.", "features.stage")) for key in state_dict):
        return pytorchcv_keys(model)
    return None


def _other_shapes(published: Mapping[str, Tensor], names: Mapping[str, str], model: VoVNet) -> list[str]:
    """Return what to say about each tensor whose shape does not fit."""
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = []
    for key, value in published.items():
        wanted = expected.get(names[key])
        got = tuple(value.shape)
        if wanted is None:  # another norm or no classifier: load_state_dict decides
            continue
        if names[key] == "stem.0.conv.weight":
            fits = got[:1] + got[2:] == wanted[:1] + wanted[2:]
        elif names[key].startswith("head.fc."):
            fits = got[1:] == wanted[1:]
        else:
            fits = got == wanted
        if not fits:
            found.append(f"{key} is {got} and should be {wanted}")
    return found


_STEM = {"stem_chs": (64, 64, 128), "layer_per_block": 5}
_SLIM = _STEM | {"stage_conv_chs": (64, 80, 96, 112), "stage_out_chs": (128, 256, 384, 512)}
_WIDE = _STEM | {"stage_conv_chs": (128, 160, 192, 224), "stage_out_chs": (256, 512, 768, 1024)}

model_cfgs: dict[str, dict[str, Any]] = {
    "vovnet27_slim": _SLIM | {"block_per_stage": (1, 1, 1, 1)},
    "vovnet39": _WIDE | {"block_per_stage": (1, 1, 2, 2)},
    "vovnet57": _WIDE | {"block_per_stage": (1, 1, 4, 3)},
}


def _create_vovnet(variant: str, pretrained: bool = False, **kwargs: Any) -> VoVNet:
    feature_cfg = {"flatten_sequential": True} | (kwargs.pop("feature_cfg", None) or {})
    with pretrained_source(variant, kwargs) if pretrained else nullcontext(kwargs) as sourced:
        return build_model_with_cfg(
            VoVNet,
            variant,
            pretrained,
            feature_cfg=feature_cfg,
            pretrained_filter_fn=checkpoint_filter_fn,
            **(model_cfgs[variant] | sourced),
        )


def imagenet_cfg(**kwargs: Any) -> dict[str, Any]:
    """Return the entries of timm's ``pretrained_cfg`` that all networks share, and ``kwargs``."""
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.0.conv",
        "classifier": "head.fc",
        **kwargs,
    }


def _cfg(source: Source) -> dict[str, Any]:
    return imagenet_cfg(
        url=source.url,
        interpolation="bilinear",  # in both publishers' evaluations
        license=source.license,
        origin_url=source.origin,
        description=f"ImageNet-1k, {source.error_text} at 224x224, as stated by {source.publisher}",
        paper_name="An Energy and GPU-Computation Efficient Backbone Network for Real-Time Object Detection",
        paper_ids="arXiv:1904.09730",
    )


default_cfgs = generate_default_cfgs({source.name: _cfg(source) for source in IMAGENET_SOURCES})


@register_model
def vovnet27_slim(pretrained: bool = False, **kwargs: Any) -> VoVNet:
    """VoVNet-27-slim (arXiv:1904.09730, table 1)."""
    return _create_vovnet("vovnet27_slim", pretrained, **kwargs)


@register_model
def vovnet39(pretrained: bool = False, **kwargs: Any) -> VoVNet:
    """VoVNet-39 (arXiv:1904.09730, table 1)."""
    return _create_vovnet("vovnet39", pretrained, **kwargs)


@register_model
def vovnet57(pretrained: bool = False, **kwargs: Any) -> VoVNet:
    """VoVNet-57 (arXiv:1904.09730, table 1)."""
    return _create_vovnet("vovnet57", pretrained, **kwargs)
