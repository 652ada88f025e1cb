"""Libraries of special fields that take backbones by their names in timm."""

import pytest
import torch

import vovnet  # noqa: F401 (registers the names)


def test_anomalib() -> None:
    """Layers have the names that timm's ``feature_info`` gives them, with a dot."""
    patchcore = pytest.importorskip("anomalib.models.image.patchcore.torch_model")
    layers = ["stages.1", "stages.2"]
    model = patchcore.PatchcoreModel(layers, backbone="vovnet27_slim", pre_trained=False, num_neighbors=1)
    features = model.feature_extractor(torch.rand(1, 3, 64, 64))
    assert {name: tuple(x.shape) for name, x in features.items()} == {
        "stages.1": (1, 256, 8, 8),
        "stages.2": (1, 384, 4, 4),
    }


@pytest.mark.parametrize("channels", [3, 4])
def test_torchgeo(channels: int) -> None:
    trainers = pytest.importorskip("torchgeo.trainers")
    shape = {"weights": None, "in_channels": channels, "num_classes": 3}
    x = torch.rand(1, channels, 64, 64)
    assert trainers.ClassificationTask(model="vovnet27_slim", **shape)(x).shape == (1, 3)
    task = trainers.SemanticSegmentationTask(model="unet", backbone="tu-vovnet27_slim", **shape)
    assert task(x).shape == (1, 3, 64, 64)
