"""segmentation-models-pytorch: every decoder on our encoders, trained for a step, and fused."""

import pytest
import torch

import vovnet

smp = pytest.importorskip("segmentation_models_pytorch")
DECODERS = (
    *("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet"),
    *("PAN", "DeepLabV3", "DeepLabV3Plus", "UPerNet", "Segformer", "DPT"),
)


@pytest.mark.parametrize("decoder", DECODERS)
def test_decoders(decoder: str) -> None:
    model = getattr(smp, decoder)("tu-vovnet27_slim", encoder_weights=None, classes=2).eval()
    x = torch.rand(1, 3, 128, 128)  # PAN halves the map seven times
    out = model(x)
    assert out.shape == (1, 2, 128, 128)
    out.sum().backward()
    assert next(model.encoder.parameters()).grad.abs().sum() > 0
    with torch.no_grad():
        torch.testing.assert_close(vovnet.fuse(model)(x), model(x), rtol=1e-3, atol=1e-3)


def test_the_larger_encoder_and_memory() -> None:
    model = smp.Unet("tu-vovnet39", encoder_weights=None, classes=2).eval()
    x = torch.rand(1, 3, 64, 64)
    expected = model(x)
    torch.testing.assert_close(vovnet.memory_efficient(model)(x), expected, rtol=1e-3, atol=1e-3)
