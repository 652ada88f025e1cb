"""The name that a network is stored under: timm's own where plain timm can build it, and ours; both are one network."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import timm
import torch
from timm.models.vovnet import VovNet as TimmVovNet

from vovnet.checkpoints.shapes import shapes_of
from vovnet.hub.stored_names import own_architecture, stored_config
from vovnet.vovnet import VoVNet, model_cfgs

OURS = ("vovnet27_slim", "vovnet39", "vovnet57")


def config(name: str, **arguments: Any) -> dict[str, Any]:
    """The configuration that timm's ``save_for_hf`` writes, read back from JSON."""
    given = {"model_args": arguments} if arguments else {}
    return json.loads(json.dumps({"architecture": name, "num_classes": 5, **given, "pretrained_cfg": {"mean": [0.5]}}))


def built(stored: dict[str, Any]) -> torch.nn.Module:
    """The model that timm builds from a configuration."""
    return timm.create_model(stored["architecture"], num_classes=5, **stored.get("model_args", {}))


@pytest.mark.parametrize("name", OURS)
def test_the_portable_form_is_timms_and_the_same_network(name: str) -> None:
    stored = stored_config(config(name), portable=True)
    assert stored["architecture"] == "vovnet39a"
    assert stored["model_args"]["residual"] is True
    assert stored["pretrained_cfg"] == {"mean": [0.5]}
    ours, theirs = built(config(name)).eval(), built(stored).eval()
    assert isinstance(theirs, TimmVovNet)
    assert isinstance(ours, VoVNet)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(ours(x), theirs(x))


def test_vovnet39_is_timms_with_residual_and_nothing_else() -> None:
    """The line that the issue gives; a longer one would be right, too, and say less."""
    assert stored_config(config("vovnet39"), portable=True)["model_args"] == {"residual": True}


def test_what_is_stored_is_json() -> None:
    for name in OURS:
        stored = stored_config(config(name), portable=True)
        assert json.loads(json.dumps(stored)) == stored


@pytest.mark.parametrize("name", OURS)
def test_there_and_back(name: str) -> None:
    ours = config(name)
    portable = stored_config(ours, portable=True)
    assert own_architecture(portable) == name
    assert stored_config(portable, portable=False) == ours
    assert stored_config(portable, portable=True) == portable
    assert stored_config(ours, portable=False) == ours
    assert ours == config(name)  # what was given stays as it was


@pytest.mark.parametrize("name", OURS)
def test_arguments_of_the_user_are_kept(name: str) -> None:
    ours = config(name, in_chans=1, drop_path_rate=0.1, global_pool="max")
    portable = stored_config(ours, portable=True)
    assert {"in_chans": 1, "drop_path_rate": 0.1, "global_pool": "max"}.items() <= portable["model_args"].items()
    assert own_architecture(portable) == name
    back = stored_config(portable, portable=False)
    assert back["model_args"] == {"in_chans": 1, "drop_path_rate": 0.1, "global_pool": "max"}
    shapes = shapes_of(built(ours).state_dict())
    assert shapes == shapes_of(built(portable).state_dict()) == shapes_of(built(back).state_dict())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet50", {}),
        ("ese_vovnet39b", {}),
        ("ese_vovnet39b_all", {}),
        ("vovnet39a", {}),
        ("vovnet39a", {"residual": False}),
        ("vovnet39a", {"residual": 1}),
        ("vovnet39a", {"residual": True, "block_per_stage": [1, 1, 1, 1]}),
        ("vovnet39a", {"residual": True, "stem_chs": [8, 8, 8]}),
        ("vovnet39a", {"residual": True, "layer_per_block": 4}),
        ("vovnet57a", {"residual": True}),
    ],
)
def test_other_networks_are_left_alone(name: str, arguments: dict[str, Any]) -> None:
    """timm's VoVNets without shortcuts are not the published ones, however much they look like them."""
    given = config(name, **arguments)
    assert own_architecture(given) == name
    for portable in (True, False):
        assert stored_config(given, portable=portable) == given


@pytest.mark.parametrize("argument", ["attn", "depthwise", "norm_layer", "act_layer", "output_stride"])
def test_an_argument_that_makes_another_network_does_not_get_our_name(argument: str) -> None:
    """Or it keeps the argument, so that ours becomes that network, too."""
    value = {"attn": "ese", "depthwise": True, "norm_layer": "groupnorm", "act_layer": "silu", "output_stride": 16}
    given = config("vovnet39a", residual=True, **{argument: value[argument]})
    back = stored_config(given, portable=False)
    assert back == given or back["model_args"][argument] == value[argument]


def test_timm_of_the_same_shape_is_told_by_the_shape() -> None:
    """Lists and tuples are equal; what is not said is timm's default."""
    for name in OURS:
        shape = {key: list(v) if isinstance(v, tuple) else v for key, v in model_cfgs[name].items()}
        assert own_architecture(config("vovnet39a", **{**shape, "residual": True})) == name


def test_timm_alone_builds_it() -> None:
    """A process without this package builds the model."""
    stored = {name: stored_config(config(name), portable=True) for name in OURS}
    code = (
        "import json, sys, timm, torch\n"
        "for name, s in json.loads(sys.argv[1]).items():\n"
        "    with torch.device('meta'):\n"
        "        m = timm.create_model(s['architecture'], num_classes=5, **s['model_args'])\n"
        "    print(json.dumps({k: list(v.shape) for k, v in m.state_dict().items()}))\n"
        "assert 'vovnet' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code, json.dumps(stored)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, line in zip(OURS, done.stdout.splitlines(), strict=True):
        own = timm.create_model(name, num_classes=5, device="meta").state_dict()
        assert json.loads(line) == {key: list(value.shape) for key, value in own.items()}
