"""Large networks are identified by the keys and shapes of a file."""

from __future__ import annotations

import pytest
import timm

from vovnet.checkpoints.shapes import shapes_of
from vovnet.hub.classifiers import infer_network, network_keys

LARGE = {
    "ese_vovnet57b_all": "VoVNetV2-57",
    "ese_vovnet99b_all": "VoVNetV2-99",
    "ese_vovnet57b": "VoVNetV2-57 as timm has it",
    "ese_vovnet99b": "VoVNetV2-99 as timm has it",
    "resnet101": "ResNet-101",
    "vovnet57": "VoVNet-57",
}


@pytest.mark.parametrize("name", LARGE)
def test_large_networks_are_told_by_their_shapes(name: str) -> None:
    model = timm.create_model(name, num_classes=0, device="meta")
    ours = shapes_of(model.state_dict())
    shapes = {theirs: ours[key] for theirs, key in network_keys(model).items() if key in ours}
    found = infer_network({key: shape for key, shape in shapes.items() if "num_batches" not in key})
    assert (found.title, found.name, found.num_classes) == (LARGE[name], name, 0)
    assert sorted(found.names.values()) == sorted(key for key in ours if "num_batches" not in key)
    assert found.ignored == {}
    assert found.licence == ("cc-by-nc-4.0" if name.startswith("ese_") else "unknown")
