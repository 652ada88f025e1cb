"""``vovnet quickstart``: generate images of shapes, train a detector on them, evaluate it and draw its detections."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vovnet.detection.checkpoints.folder import load_detector
from vovnet.detection.config.loading import load_recipe
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.data.synthetic import generate_shapes
from vovnet.detection.evaluation.coco_eval import percent
from vovnet.detection.evaluation.evaluator import evaluate
from vovnet.detection.evaluation.tables import format_metrics
from vovnet.detection.figures import warn_without_plot
from vovnet.detection.prediction.predictor import plot_predictions
from vovnet.detection.training.engine import train
from vovnet.folders.claim import claimed_folder


def run_quickstart(output: str | Path, *, overwrite: bool = False) -> str:
    """Train the ``quickstart`` recipe on generated shapes.

    ``output`` then holds the folder ``data`` (the images and their COCO JSON), the files that
    :func:`vovnet.detection.train` writes, ``metrics.json`` and the results of the final evaluation, and
    ``predictions.png``.

    Returns:
        The final numbers and the names of the most interesting files, as text.

    Raises:
        InputError: the folder is not empty and ``overwrite`` is False, or it cannot be written to.
    """
    with claimed_folder(output, overwrite=overwrite) as folder:
        return _run(folder)


def _run(output: Path) -> str:
    sources = generate_shapes(output / "data", train=400, val=60, size=(128, 128), max_shapes=3)
    recipe = load_recipe("quickstart")
    recipe = replace(recipe, data=replace(recipe.data, train=[sources["train"]], val=[sources["val"]]))
    train(recipe, output, overwrite=True, device="cpu")  # the same on every machine
    detector = load_detector(output)
    dataset = CocoDataset(recipe.data.val, masks=True, training=False)
    metrics = evaluate(detector, dataset, output)
    with warn_without_plot(output / "predictions.png"):
        plot_predictions(detector, dataset, output / "predictions.png")
    files = ("predictions.png", "curves.png", "metrics.jsonl", "model.safetensors")
    listed = "\n".join(f"  {output / name}" for name in files if (output / name).exists())
    return f"{format_metrics(metrics)}\n\nbox AP50 {percent(metrics['bbox']['AP50'])} %; look at:\n{listed}"
