"""Modules become files whose shapes are as fixed or as free as the module's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vovnet.export.metadata import ExportedInput, ExportMetadata
from vovnet.export.writing import Exportable, openvino_model


class Halves(nn.Module):
    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        return (nn.functional.avg_pool2d(image, 2),)


def exportable(dynamic: bool) -> Exportable:
    metadata = ExportMetadata("classifier", "0", ExportedInput(), [{"id": 0, "name": "one"}])
    return Exportable(Halves().eval(), torch.zeros(3, 20, 30), dynamic, ["half"], metadata)


@pytest.mark.parametrize(("dynamic", "sizes"), [(False, ["3", "10", "15"]), (True, None)])
def test_openvino_knows_the_sizes_of_a_module_for_one_size(dynamic: bool, sizes: list[str] | None) -> None:
    pytest.importorskip("openvino")
    model: Any = openvino_model(exportable(dynamic))
    assert model.inputs[0].partial_shape.is_dynamic == dynamic
    if sizes is not None:
        assert [str(size) for size in model.outputs[0].partial_shape] == sizes
