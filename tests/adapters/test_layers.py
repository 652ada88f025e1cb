"""Layers of a feature extractor's parameters, against the groups that timm makes of its classifiers."""

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from vovnet.adapters.layers import parameter_facts
from vovnet.errors import InputError


def _timm_scales(name: str, decay: float) -> dict[str, float]:
    """The factor of each parameter's learning rate in timm's own training of the classifier."""
    with torch.device("meta"):
        whole = timm.create_model(name)
    names = {parameter: own for own, parameter in whole.named_parameters()}
    return {
        names[parameter]: group["lr_scale"]
        for group in param_groups_layer_decay(whole, layer_decay=decay)
        for parameter in group["params"]
    }


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "swin_tiny_patch4_window7_224", "vovnet39", "resnet50"])
def test_layers_are_those_of_timms_own_training(name: str) -> None:
    with torch.device("meta"):
        body = timm.create_model(name, features_only=True)
    facts, scales = parameter_facts(body, name, {}), _timm_scales(name, 0.5)
    own = {parameter: 0.5 ** (facts.top - layer) for parameter, layer in facts.layers.items()}
    # timm's extractors flatten or wrap names; the parameters keep their order.
    plain = {parameter.removeprefix("model.").replace("_", "."): value for parameter, value in own.items()}
    expected = {parameter.replace("_", "."): value for parameter, value in scales.items()}
    assert len(plain) == len(own) == len(list(body.parameters()))
    assert plain == {parameter: expected[parameter] for parameter in plain}
    assert len(set(own.values())) >= 4


def test_tables_of_positions_do_not_decay() -> None:
    with torch.device("meta"):
        swin = timm.create_model("swin_tiny_patch4_window7_224", features_only=True)
        vit = timm.create_model("test_vit", features_only=True)
    tables = {name for name, _ in swin.named_parameters() if name.endswith("relative_position_bias_table")}
    assert parameter_facts(swin, "swin_tiny_patch4_window7_224", {}).undecayed == tables
    assert "model.pos_embed" in parameter_facts(vit, "test_vit", {}).undecayed


def test_what_the_classifier_does_not_have_is_in_the_top_layer() -> None:
    facts = parameter_facts(nn.ModuleDict({"of_the_detector": nn.Linear(1, 1)}), "test_resnet", {})
    assert facts.layers == {"of_the_detector.weight": facts.top, "of_the_detector.bias": facts.top}


def test_arguments_that_the_classifier_does_not_take_are_refused() -> None:
    with pytest.raises(InputError, match="backbone_args"):
        parameter_facts(nn.Linear(1, 1), "test_resnet", {"colour": "red"})
