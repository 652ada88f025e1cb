"""Libraries that look inside a model: heat maps, and counts of operations."""

from typing import Any

import numpy as np
import pytest
import torch
from client_models import small
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import vovnet

TARGETS = ["stages.3", "stages.3.blocks.0"]


def heat_map(model: nn.Module, target: str, image: torch.Tensor) -> Any:
    grad_cam = pytest.importorskip("pytorch_grad_cam")
    with grad_cam.GradCAM(model, [model.get_submodule(target)]) as cam:
        return cam(image, None)


@pytest.mark.parametrize("target", TARGETS)
def test_grad_cam(target: str) -> None:
    model, image = small().eval(), torch.rand(1, 3, 64, 64)
    expected = heat_map(model, target, image)
    assert expected.max() > 0.9
    fused = vovnet.fuse(model)
    np.testing.assert_allclose(heat_map(fused, target, image.clone().requires_grad_()), expected, atol=1e-3)
    np.testing.assert_allclose(heat_map(vovnet.memory_efficient(model), target, image), expected, atol=1e-3)


@pytest.mark.parametrize("target", TARGETS)
def test_grad_cam_on_a_fused_copy_is_told_what_to_do(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vovnet.fusion.base._warned", set())
    with pytest.warns(UserWarning, match="Grad-CAM"), pytest.raises(RuntimeError, match="does not require grad"):
        heat_map(vovnet.fuse(small().eval()), target, torch.rand(1, 3, 64, 64))


def three_forms() -> list[nn.Module]:
    model = small().eval()
    return [model, vovnet.fuse(model), vovnet.memory_efficient(small().eval())]


def macs(model: nn.Module) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.rand(1, 3, 64, 64))
    return int(counter.get_total_flops() // 2)


def test_fvcore() -> None:
    """It traces the model, and a traced model has PyTorch's operators alone."""
    fvcore = pytest.importorskip("fvcore.nn")
    for model in three_forms():
        analysis = fvcore.FlopCountAnalysis(model, torch.rand(1, 3, 64, 64)).unsupported_ops_warnings(False)
        counts = analysis.by_operator()
        assert counts["conv"] + counts["linear"] == macs(model)
        assert not [name for name in analysis.unsupported_ops() if name.startswith("vovnet")]


def test_ptflops() -> None:
    """Its backend ``aten`` takes formulas; PyTorch's own registry has them for every operator."""
    ptflops = pytest.importorskip("ptflops")
    forms = three_forms()
    formulas = {
        operator: lambda inputs, outs, formula=formula: (
            formula(*inputs, out_val=outs if len(outs) > 1 else outs[0]) // 2
        )
        for operator, formula in flop_registry.items()
    }
    quiet = {"as_strings": False, "print_per_layer_stat": False, "backend": "aten"}
    for model in forms:
        with torch.no_grad():
            found, _ = ptflops.get_model_complexity_info(model, (3, 64, 64), custom_modules_hooks=formulas, **quiet)
        assert found == macs(model)
