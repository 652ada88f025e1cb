"""What a run says of itself before its first iteration."""

from __future__ import annotations

from vovnet.detection import distributed
from vovnet.detection.config.detectors import DETECTORS
from vovnet.detection.data.protocol import DetectionDataset
from vovnet.detection.training.optimizer import scaled_learning_rate
from vovnet.detection.training.run import Run
from vovnet.terminal.streams import say


def announce(run: Run, train_dataset: DetectionDataset, val_dataset: DetectionDataset | None) -> None:
    """Print the detector, its data, the learning rate and the length, and what was left out of the data."""
    solver, model = run.recipe.solver, run.recipe.model
    parameters = sum(parameter.numel() for parameter in run.detector.parameters()) / 1e6
    lines = [
        f"{DETECTORS[model.detector].title} with {model.backbone}: {parameters:.1f} M parameters, "
        f"{model.num_classes} classes, on {run.device} × {distributed.world_size()}, autocast {solver.amp}",
        f"data: {len(train_dataset)} training images, {0 if val_dataset is None else len(val_dataset)} for validation",
        f"learning rate {scaled_learning_rate(solver):g} = {solver.base_lr:g} × {solver.batch_size} images / "
        f"{solver.reference_batch_size}; {solver.max_iterations} iterations of {solver.batch_size} images "
        f"({solver.max_iterations * solver.batch_size / len(train_dataset):.1f} epochs)",
    ]
    for name, dataset in (("data", train_dataset), ("validation data", val_dataset)):
        if dropped := getattr(dataset, "dropped_summary", None):
            lines.append(f"{name} left out: {dropped}")
    if run.iteration:
        lines.append(f"resumed after iteration {run.iteration}")
    say("\n".join(lines))
