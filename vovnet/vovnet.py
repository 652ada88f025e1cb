"""VoVNet V1: One-Shot Aggregation networks as timm models.

Paper: An Energy and GPU-Computation Efficient Backbone Network for Real-Time Object Detection,
https://arxiv.org/abs/1904.09730. The authors' networks and ImageNet weights:
https://github.com/stigma0617/VoVNet.pytorch.

timm's own ``vovnet39a`` and ``vovnet57a`` lack the identity that the authors add after the aggregation of every block
of a stage but the first; their weights load there without a word and compute something else. These are the networks
with it. State-dict keys are those of timm's ``VovNet``, so that timm's class with ``residual=True`` and this one read
each other's files.

Weights start as the authors' do (Kaiming normal over the fan-in for convolutions, zero classifier bias).
"""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import (
    BatchNormAct2d,
    ClassifierHead,
    DropPath,
    calculate_drop_path_rates,
    get_device_dtype,
)
from timm.layers import ConvNormAct as TimmConvNormAct
from timm.layers.typing import LayerType
from timm.models import (
    build_model_with_cfg,
    checkpoint_seq,
    generate_default_cfgs,
    register_model,
)
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from vovnet.arguments import check_head, check_input, check_layers, check_rates, check_widths
from vovnet.checkpoints.pretrained import pretrained_source
from vovnet.errors import InputError

__all__ = [
    "ConvNormAct",
    "OsaBlock",
    "OsaStage",
    "VoVNet",
    "checkpoint_filter_fn",
    "published_keys",
]  # timm adds the entry points


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
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            dilation=dilation,
            norm_layer=norm_layer,
            act_layer=act_layer,
            device=device,
            dtype=dtype,
        )
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
    """One-Shot Aggregation: a chain of 3×3 convolutions, all concatenated once and mixed by a 1×1 convolution.

    (N, in_chs, H, W) → (N, out_chs, H, W). With ``identity`` the block's input is added **after** the aggregation's
    activation (VoVNet.pytorch, ``_OSA_module.forward``); drop path acts on the aggregated branch of such blocks only,
    for without an identity it would erase the whole signal.
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
        **layers: Any,  # ConvNormAct's
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
    """A max-pool (none in the first stage) and OSA blocks; every block but the first has the identity.

    (N, in_chs, H, W) → (N, out_chs, ⌈(H − 1) / 2⌉, ⌈(W − 1) / 2⌉) with the stride-2 pool (3×3, ceil mode, no padding);
    a dilated stage pools with stride 1 and padding 1 and keeps H and W.
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
        self.blocks = nn.Sequential(
            *(
                OsaBlock(
                    out_chs if i else in_chs,
                    mid_chs,
                    out_chs,
                    layer_per_block,
                    identity=i > 0,
                    dilation=dilation,
                    drop_path=rate,
                    **layers,
                )
                for i, rate in enumerate(drop_path_rates)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            return checkpoint_seq(self.blocks, x)
        return self.blocks(x)


class VoVNet(nn.Module):
    """VoVNet V1: a stem of three 3×3 convolutions and four OSA stages; features at strides 2, 4, 8, 16 and 32.

    Takes (N, in_chans, H, W), normalised as ``pretrained_cfg`` says; returns logits (N, num_classes).

    Args:
        stem_chs: channels of the stem's convolutions (strides 2, 1, 2).
        stage_conv_chs: channels of the 3×3 convolutions, per stage.
        stage_out_chs: channels that leave each stage.
        block_per_stage: OSA blocks of each stage.
        layer_per_block: 3×3 convolutions of a block.
        in_chans: channels of the input.
        num_classes: width of the classifier; 0 for none.
        global_pool: 'avg', 'max', 'avgmax', 'catavgmax', …; '' for none.
        output_stride: 32, 16 or 8; below 32 the last stages keep their size and dilate by 2 (and 4) instead.
        norm_layer: a norm class or a name that timm knows.
        act_layer: an activation class or a name that timm knows.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth at the last block (rising linearly to it), in blocks with an identity.
        device: where the parameters are created ('meta' too).
        dtype: of the parameters.

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
            stages.append(
                OsaStage(
                    channels,
                    stage_conv_chs[i],
                    out_chs,
                    layer_per_block,
                    downsample=i > 0,
                    dilation=stride // reduction,
                    drop_path_rates=drop_paths[i],
                    **layers,
                )
            )
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
        """Start anew, every parameter and buffer: also what a model built on 'meta' needs after ``to_empty``."""
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
        """Patterns that group parameters by depth (timm's layer decay)."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" if coarse else r"^stages\.(\d+)\.blocks\.(\d+)"}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each stage's activations in the backward pass (batch norms then see a training batch twice)."""
        for stage in self.stages.children():
            stage.grad_checkpointing = enable  # type: ignore[assignment]  # a plain bool that nn.Module's stubs forget

    @torch.jit.ignore
    def get_classifier(self) -> nn.Module:
        """The last layer: a Linear, or an Identity where there are no classes."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier of ``num_classes`` (0: none), on the model's device; ``global_pool`` None keeps the pool."""
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
        """The features of ``feature_info``, in the network's order.

        Args:
            x: (N, in_chans, H, W).
            indices: which of the five; an int takes the last n, None takes all.
            norm: taken for timm's interface; there is no final norm.
            stop_early: leave out the stages after the last feature taken.
            output_fmt: 'NCHW' only.
            intermediates_only: return the list alone, without the final feature map.
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
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop, in place, what comes after the last of ``indices``; returns them counted from the start.

        The classifier goes with the layers that fed it, and with ``prune_head``.
        """
        taken, last = feature_take_indices(5, indices)
        shortened = last < len(self.stages)
        self.stages = self.stages[:last]
        if last == 0:
            self.stem[-1] = nn.Identity()  # the first feature leaves before the stem's last convolution
        if shortened:
            self.num_features = self.feature_info[last]["num_chs"]
        if prune_head or shortened:
            self.reset_classifier(0, "")
        return taken

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) → (N, num_features, H / 32, W / 32) (or the output stride)."""
        return self.stages(self.stem(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The final feature map → logits, or with ``pre_logits`` what the classifier would see."""
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def published_keys(model: VoVNet) -> dict[str, str]:
    """The name in the authors' ImageNet files → the name here, for every tensor of ``model`` with batch norms.

    Theirs are ``stem.stem_1/conv.weight``, ``stage3.OSA3_1.layers.0.OSA3_1_0/norm.bias``,
    ``stage3.OSA3_1.concat.OSA3_1_concat/conv.weight`` and ``classifier.weight`` (VoVNet.pytorch,
    models_vovnet/vovnet.py).
    """
    layers = {f"stem.stem_{i + 1}": f"stem.{i}" for i in range(3)}
    stages: Any = model.stages
    for s, stage in enumerate(stages):
        for b, block in enumerate(stage.blocks):
            osa = f"OSA{s + 2}_{b + 1}"
            theirs, ours = f"stage{s + 2}.{osa}", f"stages.{s}.blocks.{b}"
            for i in range(len(block.conv_mid)):
                layers[f"{theirs}.layers.{i}.{osa}_{i}"] = f"{ours}.conv_mid.{i}"
            layers[f"{theirs}.concat.{osa}_concat"] = f"{ours}.conv_concat"
    keys = {}
    for their_layer, our_layer in layers.items():
        keys[f"{their_layer}/conv.weight"] = f"{our_layer}.conv.weight"
        for leaf in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            keys[f"{their_layer}/norm.{leaf}"] = f"{our_layer}.bn.{leaf}"
    return keys | {"classifier.weight": "head.fc.weight", "classifier.bias": "head.fc.bias"}


def checkpoint_filter_fn(state_dict: Mapping[str, Any], model: VoVNet) -> dict[str, Any]:
    """The authors' ImageNet file → our keys; a file that has our (timm's) keys passes through.

    ``{"state_dict": …}`` and ``{"model": …}`` wrappers and a ``module.`` before every key are taken off. timm drops the
    classifier and adapts the first convolution afterwards, so those two may differ in classes and input channels.

    Raises:
        InputError: a published file with keys missing or left over, or with tensors of other shapes; all are listed.
    """
    for wrapper in ("state_dict", "model"):
        if isinstance(state_dict.get(wrapper), Mapping):
            state_dict = state_dict[wrapper]
    if state_dict and all(key.startswith("module.") for key in state_dict):
        state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    names = published_keys(model)
    if not any("/" in key or key in names for key in state_dict):
        return dict(state_dict)
    missing = [key for key in names if key not in state_dict]
    left_over = [key for key in state_dict if key not in names]
    reshaped = _other_shapes({key: state_dict[key] for key in names if key in state_dict}, names, model)
    problems = [
        f"{what}: {', '.join(keys)}"
        for what, keys in (("missing", missing), ("left over", left_over), ("other shapes", reshaped))
        if keys
    ]
    if problems:
        raise InputError(
            f"the checkpoint has the published VoVNet's names but does not fit this model ({'; '.join(problems)}): "
            "load it into the variant that it was saved from"
        )
    return {names[key]: value for key, value in state_dict.items()}


def _other_shapes(published: Mapping[str, Tensor], names: Mapping[str, str], model: VoVNet) -> list[str]:
    expected = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    found = []
    for key, value in published.items():
        wanted = expected.get(names[key])
        got = tuple(value.shape)
        if wanted is None:  # another norm or no classifier: load_state_dict is the judge
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


model_cfgs: dict[str, dict[str, Any]] = {
    "vovnet27_slim": {
        "stem_chs": (64, 64, 128),
        "stage_conv_chs": (64, 80, 96, 112),
        "stage_out_chs": (128, 256, 384, 512),
        "block_per_stage": (1, 1, 1, 1),
        "layer_per_block": 5,
    },
    "vovnet39": {
        "stem_chs": (64, 64, 128),
        "stage_conv_chs": (128, 160, 192, 224),
        "stage_out_chs": (256, 512, 768, 1024),
        "block_per_stage": (1, 1, 2, 2),
        "layer_per_block": 5,
    },
    "vovnet57": {
        "stem_chs": (64, 64, 128),
        "stage_conv_chs": (128, 160, 192, 224),
        "stage_out_chs": (256, 512, 768, 1024),
        "block_per_stage": (1, 1, 4, 3),
        "layer_per_block": 5,
    },
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


def _cfg(url: str = "", **kwargs: Any) -> dict[str, Any]:
    return {
        "url": url,
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bilinear",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.0.conv",
        "classifier": "head.fc",
        "license": "unknown",  # the authors' files state none
        "origin_url": "https://github.com/stigma0617/VoVNet.pytorch",
        "paper_name": "An Energy and GPU-Computation Efficient Backbone Network for Real-Time Object Detection",
        "paper_ids": "arXiv:1904.09730",
        **kwargs,
    }


PUBLISHED_TOP1_ERROR = {"vovnet39": 23.23, "vovnet57": 22.27}
"""In percent on ImageNet-1k's validation images at 224×224, as the authors report it."""

default_cfgs = generate_default_cfgs(
    {
        "vovnet27_slim.untrained": _cfg(license="apache-2.0"),
        "vovnet39.in1k": _cfg(
            url="https://dl.dropbox.com/s/1lnzsgnixd8gjra/vovnet39_torchvision.pth?dl=1",
            description=f"ImageNet-1k, top-1 error {PUBLISHED_TOP1_ERROR['vovnet39']} % at 224x224, by the authors",
        ),
        "vovnet57.in1k": _cfg(
            url="https://dl.dropbox.com/s/6bfu9gstbwfw31m/vovnet57_torchvision.pth?dl=1",
            description=f"ImageNet-1k, top-1 error {PUBLISHED_TOP1_ERROR['vovnet57']} % at 224x224, by the authors",
        ),
    }
)


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
