"""Compare the networks with timm's ``VovNet``, an independent implementation of the same blocks, and with the paper."""

import pytest
import timm
import torch
from timm.models.vovnet import VovNet
from timm.optim import create_optimizer_v2
from torch import Tensor, nn
from torch.nn import functional as F

import vovnet
from vovnet.checkpoints.sources import IMAGENET_SOURCES
from vovnet.errors import InputError
from vovnet.vovnet import model_cfgs

NAMES = ("vovnet27_slim", "vovnet39", "vovnet57")
SLIM = "vovnet27_slim"
SLIM_CHANNELS = [64, 128, 256, 384, 512]
STRIDES = [2, 4, 8, 16, 32]


def slim(**kwargs: object) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(SLIM, **kwargs).eval()


def deep(**kwargs: object) -> nn.Module:
    """Return a narrow, cheap network with an identity in every stage."""
    torch.manual_seed(0)
    sizes = {
        "layer_per_block": 2,
        "stage_conv_chs": (8, 8, 8, 8),
        "stage_out_chs": (16, 16, 24, 32),
        "block_per_stage": (2, 2, 3, 2),
    }
    return timm.create_model(SLIM, stem_chs=(8, 8, 16), **sizes, **kwargs).eval()


def image(batch: int = 1, size: int = 64, channels: int = 3) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def randomise_norms(model: nn.Module) -> None:
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.2, generator=generator)
                module.running_mean.normal_(0, 0.2, generator=generator)
                module.running_var.uniform_(0.5, 1.5, generator=generator)


# --- the architecture -----------------------------------------------------------------------------------------------


def timm_twin(name: str) -> nn.Module:
    if name != SLIM:
        return timm.create_model(f"{name}a", residual=True).eval()
    cfg = {key: list(value) if isinstance(value, tuple) else value for key, value in model_cfgs[SLIM].items()}
    return VovNet(dict(cfg, residual=True, depthwise=False, attn="")).eval()


@pytest.mark.parametrize("name", NAMES)
def test_timm_with_residual_reads_our_file_and_we_read_theirs(name: str) -> None:
    ours, theirs = timm.create_model(name).eval(), timm_twin(name)
    assert {k: v.shape for k, v in ours.state_dict().items()} == {k: v.shape for k, v in theirs.state_dict().items()}
    randomise_norms(theirs)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = image()
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
    randomise_norms(ours)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def test_without_the_identity_the_same_weights_compute_something_else() -> None:
    ours, theirs = timm.create_model("vovnet39").eval(), timm.create_model("vovnet39a").eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    with torch.inference_mode():
        assert (ours(image()) - theirs(image())).abs().max() > 1e-3


def test_a_block_adds_its_input_after_the_last_relu() -> None:
    block = deep().stages[2].blocks[1]
    x = -torch.rand(1, 24, 6, 6)  # negative, so that a ReLU after the sum would change the result
    with torch.inference_mode():
        features = [x]
        for conv in block.conv_mid:
            y = F.conv2d(features[-1], conv.conv.weight, padding=1)
            features.append(
                F.relu(F.batch_norm(y, conv.bn.running_mean, conv.bn.running_var, conv.bn.weight, conv.bn.bias))
            )
        last = block.conv_concat
        y = F.conv2d(torch.cat(features, 1), last.conv.weight)
        y = F.relu(F.batch_norm(y, last.bn.running_mean, last.bn.running_var, last.bn.weight, last.bn.bias))
        torch.testing.assert_close(block(x), x + y, rtol=1e-5, atol=1e-5)
        assert (block(x) < 0).any()


def test_every_block_of_a_stage_but_the_first_has_the_identity() -> None:
    for name in NAMES:
        model = timm.create_model(name, device="meta")
        assert [[b.identity for b in s.blocks] for s in model.stages] == [
            [i > 0 for i in range(n)] for n in model_cfgs[name]["block_per_stage"]
        ]


@pytest.mark.parametrize(
    ("name", "parameters", "channels"),
    [
        (SLIM, 3_525_736, SLIM_CHANNELS),
        ("vovnet39", 22_600_296, [64, 256, 512, 768, 1024]),
        ("vovnet57", 36_640_296, [64, 256, 512, 768, 1024]),
    ],
)
def test_parameters_and_feature_info(name: str, parameters: int, channels: list[int]) -> None:
    model = timm.create_model(name, device="meta")
    assert sum(p.numel() for p in model.parameters()) == parameters
    info = timm.models.FeatureInfo(model.feature_info, 5)
    assert (info.channels(), info.reduction()) == (channels, STRIDES)
    modules = dict(model.named_modules())
    assert all(name in modules for name in info.module_name())


def test_weights_start_with_kaiming_over_the_fan_in() -> None:
    model = slim()
    weight = model.stages[3].blocks[0].conv_concat.conv.weight
    assert weight.std().item() == pytest.approx((2 / weight[0].numel()) ** 0.5, rel=0.02)
    assert not model.head.fc.bias.any()
    assert model.stages[0].blocks[0].conv_mid[0].bn.weight.eq(1).all()


# --- registration and metadata --------------------------------------------------------------------------------------


def test_import_registers_the_names() -> None:
    assert set(timm.list_models("vovnet*", module="vovnet")) >= set(NAMES)
    assert set(timm.list_pretrained("vovnet*")) >= {source.name for source in IMAGENET_SOURCES}
    assert all(timm.is_model_pretrained(name) for name in NAMES)
    assert isinstance(slim(), vovnet.VoVNet)
    assert isinstance(vovnet.__version__, str)


@pytest.mark.parametrize("name", [source.name for source in IMAGENET_SOURCES])
def test_metadata(name: str) -> None:
    cfg = timm.get_pretrained_cfg(name).to_dict()
    assert cfg["architecture"] == name.split(".")[0]
    assert (cfg["num_classes"], cfg["input_size"], cfg["pool_size"]) == (1000, (3, 224, 224), (7, 7))
    assert (cfg["mean"], cfg["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (cfg["interpolation"], cfg["crop_pct"]) == ("bilinear", 0.875)
    assert cfg["paper_ids"] == "arXiv:1904.09730"
    assert cfg["license"]
    keys = timm.create_model(name, device="meta").state_dict()
    assert f"{cfg['first_conv']}.weight" in keys
    assert f"{cfg['classifier']}.weight" in keys


def test_published_files() -> None:
    assert [timm.get_pretrained_cfg(name).tag for name in NAMES] == ["osmr_in1k"] * 3  # the default
    urls = {name: timm.get_pretrained_cfg(f"{name}.in1k").url for name in ("vovnet39", "vovnet57")}
    assert urls == {
        "vovnet39": "https://dl.dropbox.com/s/1lnzsgnixd8gjra/vovnet39_torchvision.pth?dl=1",
        "vovnet57": "https://dl.dropbox.com/s/6bfu9gstbwfw31m/vovnet57_torchvision.pth?dl=1",
    }


def test_pool_size_is_the_truth() -> None:
    with torch.inference_mode():
        assert slim().forward_features(image(size=224)).shape == (1, 512, 7, 7)


# --- timm's interface -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("out_indices", [(0, 1, 2, 3, 4), (1, 2, 3, 4), (0,), (2,), (1, 3), (-1,), (-2, -1), 2])
@pytest.mark.parametrize("feature_cls", ["list", "getter", "hook", "fx"])
def test_features_only(out_indices: tuple[int, ...] | int, feature_cls: str) -> None:
    if feature_cls == "fx" and isinstance(out_indices, int):
        out_indices = (3, 4)
    if feature_cls == "hook":
        model = timm.create_model(SLIM, features_only=True, out_indices=out_indices, feature_cls="hook").eval()
    else:
        model = slim(features_only=True, out_indices=out_indices, feature_cls=feature_cls)
    taken = list(range(5))[-out_indices:] if isinstance(out_indices, int) else [range(5)[i] for i in out_indices]
    with torch.inference_mode():
        outputs = model(image())
    assert model.feature_info.channels() == [SLIM_CHANNELS[i] for i in taken]
    assert model.feature_info.reduction() == [STRIDES[i] for i in taken]
    assert [tuple(o.shape[1:]) for o in outputs] == [(SLIM_CHANNELS[i], *[64 // STRIDES[i]] * 2) for i in taken]


def test_features_equal_the_whole_networks() -> None:
    whole, features = deep(), deep(features_only=True)
    features.load_state_dict(
        {
            k.replace("stages.", "stages_").replace("stem.", "stem_"): v
            for k, v in whole.state_dict().items()
            if not k.startswith("head")
        }
    )
    x = image()
    with torch.inference_mode():
        final, intermediates = whole.forward_intermediates(x)
        for a, b in zip(features(x), intermediates, strict=True):
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(final, whole.forward_features(x))
        torch.testing.assert_close(whole.forward_head(final), whole(x))


def test_feature_cfg_is_taken_from_the_caller() -> None:
    model = timm.create_model(SLIM, features_only=True, feature_cfg={"feature_cls": "fx", "out_indices": (3,)})
    assert type(model).__name__ == "FeatureGraphNet"
    assert model.feature_info.channels() == [384]


def test_forward_intermediates_options() -> None:
    model, x = deep(), image()
    with torch.inference_mode():
        final, everything = model.forward_intermediates(x)
        early, some = model.forward_intermediates(x, indices=[0, 2], stop_early=True)
        last = model.forward_intermediates(x, indices=1, intermediates_only=True)
    assert len(everything) == 5
    assert [t.shape for t in some] == [everything[0].shape, everything[2].shape]
    torch.testing.assert_close(early, everything[2])
    torch.testing.assert_close(last[0], final)
    with pytest.raises(InputError, match="output_fmt='NHWC'"):
        model.forward_intermediates(x, output_fmt="NHWC")


@pytest.mark.parametrize(("indices", "taken"), [([0], [0]), ([1, 3], [1, 3]), ([-1], [4]), (2, [3, 4])])
def test_prune_intermediate_layers(indices: int | list[int], taken: list[int]) -> None:
    model, x = deep(), image()
    with torch.inference_mode():
        expected = model.forward_intermediates(x, indices, intermediates_only=True)
        assert model.prune_intermediate_layers(indices) == taken
        pruned = model.forward_intermediates(x, taken, intermediates_only=True)
        for a, b in zip(pruned, expected, strict=True):
            torch.testing.assert_close(a, b)
        torch.testing.assert_close(model(x), expected[-1])
    assert len(model.stages) == taken[-1]
    assert model.num_features == [8, 16, 16, 24, 32][taken[-1]]
    assert isinstance(model.get_classifier(), nn.Identity)


def test_prune_can_keep_the_head_of_a_whole_network() -> None:
    model = deep(num_classes=7)
    model.prune_intermediate_layers([4], prune_head=False)
    assert model(image()).shape == (1, 7)


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "catavgmax", "fast"])
def test_head(pool: str) -> None:
    width = 1024 if pool == "catavgmax" else 512
    model, x = slim(num_classes=5, global_pool=pool), image(2)
    assert model.head_hidden_size == width
    with torch.inference_mode():
        features = model.forward_features(x)
        pre_logits = model.forward_head(features, pre_logits=True)
        assert model(x).shape == (2, 5)
        assert pre_logits.shape == (2, width)
        torch.testing.assert_close(model.get_classifier()(pre_logits), model(x))
        model.reset_classifier(0)
        assert model.num_classes == 0
        torch.testing.assert_close(model(x), pre_logits)
        model.reset_classifier(0, "")
        torch.testing.assert_close(model(x), features)
        model.reset_classifier(3, "avg")
        assert (model.num_classes, model.head_hidden_size, model(x).shape) == (3, 512, (2, 3))


def test_reset_classifier_keeps_device_dtype_and_mode() -> None:
    model = slim(dtype=torch.float64)
    model.reset_classifier(4)
    assert model.get_classifier().weight.dtype == torch.float64
    model = slim(device="meta")
    model.reset_classifier(4, "max")
    assert model.get_classifier().weight.is_meta
    assert not model.get_classifier().training


def test_no_head_from_the_start() -> None:
    model = slim(num_classes=0, global_pool="")
    assert model(image()).shape == (1, 512, 2, 2)
    assert slim(num_classes=0)(image()).shape == (1, 512)


@pytest.mark.parametrize("channels", [1, 4])
def test_in_chans(channels: int) -> None:
    model = slim(in_chans=channels)
    assert model.in_chans == channels
    assert model(image(channels=channels)).shape == (1, 1000)


def test_backward_reaches_every_parameter() -> None:
    model = slim(num_classes=42).train()
    model(image(2)).mean().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_grad_checkpointing_changes_nothing_but_memory() -> None:
    plain, saving = deep().train(), deep().train()
    saving.set_grad_checkpointing()
    x = image(2)
    a, b = plain(x), saving(x)
    torch.testing.assert_close(a, b)
    a.square().sum().backward()
    b.square().sum().backward()
    for p, q in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5)
    saving.set_grad_checkpointing(False)
    assert not any(stage.grad_checkpointing for stage in saving.stages)


def test_features_can_checkpoint() -> None:
    model = deep(features_only=True).train()
    model.set_grad_checkpointing(True)
    sum(f.mean() for f in model(image(2))).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_group_matcher_orders_the_layers() -> None:
    model = slim()
    layers = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
    assert layers["stem.0.conv.weight"] == 0
    order = [layers[f"stages.{i}.blocks.0.conv_concat.conv.weight"] for i in range(4)]
    assert order == sorted(set(order))
    assert layers["head.fc.weight"] > order[-1]
    assert set(layers) == {name for name, _ in model.named_parameters()}
    assert timm.models.group_parameters(model, model.group_matcher(coarse=True), reverse=True)
    create_optimizer_v2(model, "sgd", lr=0.1, layer_decay=0.9)


def test_drop_rate_is_dropout_before_the_classifier() -> None:
    model = slim(drop_rate=0.5).train()
    features = torch.ones(1, 512, 2, 2)
    assert (model.forward_head(features, pre_logits=True) == 0).any()
    assert (model.eval().forward_head(features, pre_logits=True) == 1).all()


def test_drop_path_drops_whole_branches_and_never_the_signal() -> None:
    model = deep(drop_path_rate=0.99)
    torch.testing.assert_close(model(image()), deep()(image()))
    model.train()
    block = model.stages[3].blocks[1]
    assert block.drop_path.drop_prob == pytest.approx(0.99)
    x = torch.rand(4, 32, 4, 4)
    torch.testing.assert_close(block(x)[0], x[0])  # the branch is dropped, only the identity is left
    first = model.stages[3].blocks[0]
    assert isinstance(first.drop_path, nn.Identity)


@pytest.mark.parametrize("norm", ["groupnorm1", "batchnorm2d", nn.BatchNorm2d, "evonormb0"])
def test_norm_layer(norm: object) -> None:
    model = slim(norm_layer=norm)
    assert model(image()).shape == (1, 1000)
    assert isinstance(model.stem[0].bn, nn.GroupNorm) == (norm == "groupnorm1")


@pytest.mark.parametrize("act", ["silu", nn.GELU, "relu6"])
def test_act_layer(act: object) -> None:
    model = slim(act_layer=act)
    assert not any(type(m) is nn.ReLU for m in model.modules())
    assert model(image()).shape == (1, 1000)


# --- dilation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output_stride", "dilations", "reductions"),
    [(32, [1, 1, 1, 1], [2, 4, 8, 16, 32]), (16, [1, 1, 1, 2], [2, 4, 8, 16, 16]), (8, [1, 1, 2, 4], [2, 4, 8, 8, 8])],
)
def test_output_stride(output_stride: int, dilations: list[int], reductions: list[int]) -> None:
    model = deep(output_stride=output_stride)
    for stage, dilation in zip(model.stages, dilations, strict=True):
        for block in stage.blocks:
            assert {conv.conv.dilation for conv in block.conv_mid} == {(dilation, dilation)}
    features = deep(features_only=True, output_stride=output_stride)
    assert features.feature_info.reduction() == reductions
    with torch.inference_mode():
        assert [o.shape[-1] for o in features(image())] == [64 // r for r in reductions]
        assert model(image()).shape == (1, 1000)
    model.load_state_dict(deep().state_dict(), strict=True)


def test_dilated_stage_computes_the_dilated_convolution() -> None:
    model = deep(output_stride=8)
    stage, x = model.stages[2], image(size=12, channels=16)
    with torch.inference_mode():
        pooled = F.max_pool2d(x, 3, stride=1, padding=1)
        conv = stage.blocks[0].conv_mid[0]
        y = F.conv2d(pooled, conv.conv.weight, padding=2, dilation=2)
        y = F.relu(F.batch_norm(y, conv.bn.running_mean, conv.bn.running_var, conv.bn.weight, conv.bn.bias))
        torch.testing.assert_close(conv(stage.pool(x)), y)


@pytest.mark.parametrize("size", [33, 47, 50, 63])
def test_odd_sizes(size: int) -> None:
    """The ceil-mode pool rounds up, so a feature map is never smaller than size / stride."""
    with torch.inference_mode():
        for stride, feature in zip(STRIDES, deep().forward_intermediates(image(size=size))[1], strict=True):
            assert feature.shape[-1] in (-(-size // stride), size // stride)


# --- where it is built and how it is compiled -----------------------------------------------------------------------


def test_meta_device_holds_no_memory() -> None:
    model = timm.create_model("vovnet57", device="meta")
    assert all(t.is_meta for t in model.state_dict().values())
    other = slim(device="meta")
    other.load_state_dict(slim().state_dict(), assign=True)
    torch.testing.assert_close(other(image()), slim()(image()))


def test_init_weights_after_to_empty() -> None:
    model = slim(device="meta").to_empty(device="cpu")
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(float("nan") if tensor.is_floating_point() else 7)
    model.init_weights()
    assert all(tensor.isfinite().all() for tensor in model.state_dict().values())
    assert model.stem[0].bn.num_batches_tracked == 0
    assert model(image()).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtype(dtype: torch.dtype) -> None:
    model = slim(dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert model(image().to(dtype)).dtype == dtype


def test_channels_last() -> None:
    model, x = slim(), image()
    with torch.inference_mode():
        expected = model(x)
        model = model.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
        assert model.forward_features(x).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kwargs", [{}, {"output_stride": 8}, {"features_only": True}, {"drop_path_rate": 0.1}])
def test_torchscript(kwargs: dict[str, object], tmp_path: object) -> None:
    model, x = deep(scriptable=True, **kwargs), image()
    scripted = torch.jit.script(model)
    with torch.inference_mode():
        torch.testing.assert_close(scripted(x), model(x))
    model.train()
    torch.jit.script(model)(image(2))


def test_torchscript_of_the_feature_getter() -> None:
    model, x = deep(features_only=True, feature_cls="getter", out_indices=(1, 2), scriptable=True), image()
    scripted = torch.jit.script(model)
    with torch.inference_mode():
        torch.testing.assert_close(scripted(x), model(x))


def test_fx_trace_is_equal() -> None:
    from timm.models import create_feature_extractor, get_graph_node_names

    model, x = deep(), image()
    _, nodes = get_graph_node_names(model)
    extractor = create_feature_extractor(model, [nodes[-1]])
    with torch.inference_mode():
        assert torch.equal(next(iter(extractor(x).values())), model(x))
    extractor.train()
    next(iter(extractor(image(2)).values())).mean().backward()
    torch.jit.script(create_feature_extractor(deep(scriptable=True), [nodes[-1]]))


@pytest.mark.parametrize("kwargs", [{}, {"features_only": True, "out_indices": (1, 4)}])
def test_export(kwargs: dict[str, object]) -> None:
    model = deep(**kwargs)
    dim = torch.export.Dim
    program = torch.export.export(
        model, (image(2),), dynamic_shapes={"x": {0: dim("n", max=64), 2: dim.AUTO, 3: dim.AUTO}}
    )
    with torch.inference_mode():
        for x in (image(2), image(3)):
            torch.testing.assert_close(program.module()(x), model(x))


@pytest.mark.parametrize("kwargs", [{}, {"features_only": True, "output_stride": 16}])
def test_compile_fullgraph(kwargs: dict[str, object]) -> None:
    torch.compiler.reset()
    model, x = deep(**kwargs), image()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), model(x))


def test_compile_fullgraph_trains() -> None:
    torch.compiler.reset()
    model, twin = slim(layer_per_block=1).train(), slim(layer_per_block=1).train()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    compiled(image(2)).square().sum().backward()
    twin(image(2)).square().sum().backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-3, atol=1e-4)


# --- wrong arguments ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("argument", ["outpt_stride", "out_indices", "drop_path", "residual", "img_size"])
def test_an_unknown_argument_is_named(argument: str) -> None:
    with pytest.raises(TypeError, match=argument):
        timm.create_model(SLIM, **{argument: 4})


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("output_stride", 4),
        ("output_stride", "16"),
        ("global_pool", "agv"),
        ("num_classes", -1),
        ("num_classes", "10"),
        ("in_chans", 0),
        ("in_chans", 3.0),
        ("drop_rate", 1.5),
        ("drop_path_rate", -0.1),
        ("drop_path_rate", "0.1"),
        ("norm_layer", "batchnom"),
        ("norm_layer", nn.Conv2d),
        ("norm_layer", 3),
        ("norm_layer", ""),
        ("act_layer", "rleu"),
        ("act_layer", 3),
        ("block_per_stage", (1, 1, 2)),
        ("block_per_stage", 4),
        ("stage_conv_chs", (128, 160, 0, 224)),
        ("stem_chs", (64, 64)),
        ("layer_per_block", 0),
    ],
)
def test_a_wrong_value_is_named(argument: str, value: object) -> None:
    with pytest.raises(InputError, match=argument) as error:
        timm.create_model(SLIM, **{argument: value})
    assert "\n" not in str(error.value)


def test_reset_classifier_refuses_what_it_cannot_build() -> None:
    model = slim()
    with pytest.raises(InputError, match="global_pool='agv'"):
        model.reset_classifier(3, "agv")
    with pytest.raises(InputError, match="num_classes=-3"):
        model.reset_classifier(-3)
