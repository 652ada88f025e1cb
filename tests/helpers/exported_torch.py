"""The detector of :mod:`exported_files`, as files that PyTorch runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from exported_files import DETECTOR, FOUND, ROWS, grid
from torch import Tensor, nn

from vovnet.export.metadata import KEY, ExportMetadata


class Outputs(NamedTuple):
    boxes: Tensor
    scores: Tensor
    labels: Tensor
    masks: Tensor
    count: Tensor


class Finder(nn.Module):
    """Takes ``image`` (3, H, W), uint8."""

    def __init__(self) -> None:
        super().__init__()
        halves = torch.zeros(ROWS, 4)
        halves[:FOUND] = torch.tensor([[0, 0, 0.5, 1], [0, 0, 1, 1]])
        self.register_buffer("halves", halves)
        self.register_buffer("others", torch.tensor([0.25, 0, 0]))
        self.register_buffer("labels", torch.tensor([2, 1, 0, 0]))
        self.register_buffer("grid", torch.from_numpy(grid()))
        self.register_buffer("found", torch.tensor(FOUND))

    def forward(self, image: Tensor) -> Outputs:
        height, width = image.shape[1], image.shape[2]
        sides = torch.full((4,), 1.0)
        sides[0::2] = sides[0::2] * width
        sides[1::2] = sides[1::2] * height
        scores = torch.cat([(image.float() / 255).mean()[None], self.others])
        return Outputs(self.halves * sides, scores, self.labels.clone(), self.grid.clone(), self.found.clone())


def write_torchscript(path: Path, metadata: ExportMetadata | str | None = DETECTOR) -> Path:
    """Write the detector as TorchScript."""
    extra = {} if metadata is None else {KEY: metadata if isinstance(metadata, str) else metadata.to_json()}
    torch.jit.save(torch.jit.script(Finder()), str(path), _extra_files=extra)
    return path


def write_pt2(path: Path, metadata: ExportMetadata | None = DETECTOR) -> Path:
    """Compile the detector for this machine's CPU (seconds) and write the package."""
    import torch._inductor

    class Plain(Finder):
        def forward(self, image: Tensor) -> tuple[Tensor, ...]:  # type: ignore[override]
            return tuple(super().forward(image))

    dynamic: Any = {"image": {1: torch.export.Dim("height", min=2), 2: torch.export.Dim("width", min=2)}}
    program = torch.export.export(Plain(), (torch.zeros(3, 40, 60, dtype=torch.uint8),), dynamic_shapes=dynamic)
    configs = {} if metadata is None else {"aot_inductor.metadata": {KEY: metadata.to_json()}}
    torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=configs)
    return path
