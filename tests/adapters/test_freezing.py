"""Freezing the first stages of a backbone."""

import pytest
import torch
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from vovnet.adapters import FpnBackbone, fpn_backbone
from vovnet.adapters.norms import batch_norms
from vovnet.errors import InputError


def backbone(name: str, trainable: int | None, norm: str = "bn", **kwargs: object) -> FpnBackbone:
    return fpn_backbone(
        name, pretrained=True, download=False, norm=norm, trainable_stages=trainable, out_channels=8, **kwargs
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("trainable", range(6))
def test_the_same_layers_train_as_in_torchvisions_resnet(trainable: int) -> None:
    ours = backbone("resnet18", trainable, "frozen_bn")
    theirs = resnet_fpn_backbone(backbone_name="resnet18", weights=None, trainable_layers=trainable)
    expected = {k for k, p in theirs.body.named_parameters() if p.requires_grad}
    assert {k for k, p in ours.body.named_parameters() if p.requires_grad} == expected


@pytest.mark.parametrize(
    ("name", "stages", "first"),
    [
        ("vovnet27_slim", 5, "stages_3."),
        ("ese_vovnet19b_dw", 5, "stages_3."),
        ("mobilenetv3_large_100", 5, ("blocks.5.", "blocks.6.")),
        ("pvt_v2_b0", 4, "stages_3."),
        ("convnext_atto", 4, "stages_3."),
        ("xception41", 5, ("blocks_11.stack.conv3.", "blocks_12.")),  # its fourth map is taken inside block 11
    ],
)
def test_the_last_stage_of_any_model(name: str, stages: int, first: str | tuple[str, ...]) -> None:
    training = [k for k, p in backbone(name, 1).body.named_parameters() if p.requires_grad]
    assert training
    assert all(k.startswith(first) for k in training)
    assert all(p.requires_grad for p in backbone(name, stages).body.parameters())
    assert not any(p.requires_grad for p in backbone(name, 0).body.parameters())
    with pytest.raises(InputError, match=f"trainable_stages must be 0 to {stages} .*got {stages + 1}"):
        backbone(name, stages + 1)


def test_frozen_stages_are_constants() -> None:
    net = backbone("vovnet27_slim", 2).train()
    before = {k: v.clone() for k, v in net.body.state_dict().items()}
    sum(level.sum() for level in net(torch.rand(2, 3, 64, 64)).values()).backward()
    changed = {k.split(".")[0] for k, v in net.body.state_dict().items() if not torch.equal(v, before[k])}
    assert changed == {"stages_2", "stages_3"}
    assert all(p.grad is None for p in net.body.parameters() if not p.requires_grad)
    assert len(batch_norms(net.body)) == 12  # two stages of one block: five convolutions and the aggregation


def test_stages_are_counted_among_those_in_use() -> None:
    net = backbone("resnet18", 1, out_indices=[1, 2])
    assert {k.split(".")[0] for k, p in net.body.named_parameters() if p.requires_grad} == {"layer2"}


def test_freezing_random_weights_warns() -> None:
    with pytest.warns(UserWarning, match="3 of 5 stages do not train, and their weights are random"):
        fpn_backbone("resnet18", norm="bn", trainable_stages=2, out_channels=8)


def test_a_model_whose_stages_cannot_be_found_says_so() -> None:
    with pytest.raises(InputError, match="does not say where its stages end"):
        backbone("twins_svt_small", 2)
