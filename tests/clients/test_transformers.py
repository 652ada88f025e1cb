"""transformers: our networks as the backbone of its models, by their names in timm."""

import pytest
import torch

import vovnet  # noqa: F401 (registers the names)

transformers = pytest.importorskip("transformers")
CHANNELS = [128, 256, 384, 512]
LAYERS = {"encoder_layers": 1, "decoder_layers": 1, "d_model": 32, "num_queries": 5}
HEADS = {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")} | {
    f"{part}_ffn_dim": 32 for part in ("encoder", "decoder")
}


def backbone(*levels: int) -> "transformers.TimmBackboneConfig":
    return transformers.TimmBackboneConfig(backbone="vovnet27_slim", use_pretrained_backbone=False, out_indices=levels)


def image() -> torch.Tensor:
    return torch.rand(1, 3, 64, 64)


def test_backbone() -> None:
    maps = transformers.TimmBackbone(backbone(1, 2, 3, 4))(image()).feature_maps
    assert [tuple(x.shape) for x in maps] == [(1, c, 16 >> i, 16 >> i) for i, c in enumerate(CHANNELS)]


def test_upernet() -> None:
    sizes = {"hidden_size": 32, "num_labels": 3, "auxiliary_in_channels": CHANNELS[2]}
    config = transformers.UperNetConfig(backbone_config=backbone(1, 2, 3, 4), **sizes)
    assert transformers.UperNetForSemanticSegmentation(config).eval()(image()).logits.shape == (1, 3, 64, 64)


def test_mask2former() -> None:
    widths = dict.fromkeys(
        ("feature_size", "mask_feature_size", "hidden_dim", "encoder_feedforward_dim", "dim_feedforward"), 32
    )
    counts = {"encoder_layers": 1, "decoder_layers": 2, "num_attention_heads": 2, "num_queries": 5, "num_labels": 3}
    config = transformers.Mask2FormerConfig(backbone_config=backbone(1, 2, 3, 4), **widths, **counts)
    out = transformers.Mask2FormerForUniversalSegmentation(config)(image())
    assert out.class_queries_logits.shape == (1, 5, 4)
    assert out.masks_queries_logits.shape == (1, 5, 16, 16)


def check_training(model: torch.nn.Module, **more: object) -> None:
    """One step with one object; the backbone gets a gradient."""
    labels = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.4, 0.4]])}]
    out = model(image(), labels=labels, **more)
    assert out.pred_boxes.shape == (1, 5, 4)
    out.loss.backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for n, p in model.named_parameters() if "stages" in n)


def test_detr() -> None:
    pytest.importorskip("scipy")
    check_training(
        transformers.DetrForObjectDetection(transformers.DetrConfig(backbone_config=backbone(4), **LAYERS, **HEADS))
    )


def test_rt_detr() -> None:
    pytest.importorskip("scipy")
    widths = {"encoder_in_channels": CHANNELS[1:], "decoder_in_channels": [32] * 3, "encoder_hidden_dim": 32}
    config = transformers.RTDetrConfig(backbone_config=backbone(2, 3, 4), num_denoising=0, **widths, **LAYERS, **HEADS)
    check_training(transformers.RTDetrForObjectDetection(config))
