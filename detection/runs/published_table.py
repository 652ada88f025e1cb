"""The table that the reference publishes, for detectors that are here: ``vovnet benchmark table``.

The columns have the titles and the order of https://github.com/stigma0617/maskrcnn-benchmark-vovnet (README.md of the
branch vovnet at f705301, "Performance on COCO"), without its last one, DOWNLOAD. Notes below the table
say what they mean.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from vovnet.detection.checkpoints.folder import load_detector
from vovnet.detection.config.detectors import DETECTORS
from vovnet.detection.config.model import ModelRecipe
from vovnet.detection.data.pixels import to_pixels
from vovnet.detection.evaluation.coco_eval import percent
from vovnet.detection.inference_mode import input_channels, to_input
from vovnet.detection.runs.reading import RunRecord, read_run
from vovnet.detection.training.metrics_log import flat_metrics
from vovnet.environment import describe_machine
from vovnet.files import read_json, write_text
from vovnet.folders.home import expand_home
from vovnet.processes.devices import choose_device, default_device
from vovnet.terminal import streams
from vovnet.terminal.text import printable
from vovnet.timing.rounds import time_calls

COLUMNS = (
    *("Backbone", "Detector", "Train mem(GB)", "Inference time (ms)"),
    *("Box AP (AP/APs/APm/APl)", "Mask AP (AP/APs/APm/APl)"),
)
ABSENT = "-"
"""What a cell holds where there is no number."""
ASPECT = 4 / 3
"""Width over height of the image that is timed, if none is given; most of COCO's have it."""


@dataclass(frozen=True)
class Row:
    """A detector in the table.

    Attributes:
        name: the folder or name as it was given.
        model: its model recipe.
        memory: the peak in its training in bytes, or None.
        milliseconds: the median time of one image, or None if it was not measured.
        scores: AP in 0..1 under the names of a metrics file, such as ``box_ap`` and ``mask_aps``.
    """

    name: str
    model: ModelRecipe
    memory: int | None
    milliseconds: float | None
    scores: Mapping[str, float]

    def cells(self) -> list[str]:
        """Return the texts of its cells, as Markdown."""
        return [
            _cell(self.model.backbone),
            DETECTORS[self.model.detector].title,
            ABSENT if self.memory is None else f"{self.memory / 1e9:.1f}",
            ABSENT if self.milliseconds is None else f"{self.milliseconds:.0f}",
            self._four("box"),
            self._four("mask"),
        ]

    def _four(self, kind: str) -> str:
        if f"{kind}_ap" not in self.scores:
            return ABSENT
        values = [self.scores.get(f"{kind}_{name}", -1.0) for name in ("ap", "aps", "apm", "apl")]
        return "/".join(ABSENT if value < 0 else percent(value) for value in values)  # -1: there was nothing to count


def benchmark_table(
    names: Sequence[str],
    *,
    rounds: int = 10,
    image: Path | None = None,
    device: str | torch.device | None = None,
    output: Path | None = None,
    say: Callable[[str], None] = streams.echo,
) -> list[Row]:
    """Measure how long detectors take for one image, and print them as a table with what their runs left.

    Args:
        names: runs' folders, other detectors' folders, names on the Hub, or ``torchvision:NAME``.
        rounds: every detector has a turn in each; the median counts. 0 measures nothing.
        image: the image; None draws noise of the size to which each detector resizes an image of COCO.
        device: where the detectors run; None is the GPU of this process, or the CPU if there is none.
        output: a Markdown file for the table.
        say: prints a text.

    Raises:
        InputError: a detector or the image cannot be read, or there is no such device.
    """
    place = choose_device(device, default_device())
    found: list[tuple[str, ModelRecipe, RunRecord | None, Mapping[str, float]]] = []
    timed: dict[str, Callable[[], object]] = {}
    for name in dict.fromkeys(names):
        detector = load_detector(name)
        found.append((name, detector.recipe, *_left_by_a_run(name)))
        if rounds:
            pixels = _image(detector.recipe, image, input_channels(detector))
            timed[name] = _one_image(detector.to(place), to_input(pixels, place), place)
    seconds = time_calls(timed, rounds) if rounds else {}
    rows = [
        Row(name, model, None if run is None else run.memory, _median_ms(seconds.get(name)), scores)
        for name, model, run, scores in found
    ]
    what = f"one image, {'noise of the size that each network gets' if image is None else image.name}"
    timing = f"median of {rounds} rounds of all detectors, {what}, on {device_name(place)}"
    text = "\n".join([*_markdown(rows), "", *_notes(rows, [run for _, _, run, _ in found], timing)])
    say(text)
    if output is not None:
        write_text(output, text + "\n")
    return rows


def device_name(device: torch.device) -> str:
    """Return the GPU's name, or the processor's with the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu":
        return f"{describe_machine()['processor']} with {torch.get_num_threads()} threads"
    return str(device)


def _median_ms(seconds: Sequence[float] | None) -> float | None:
    return None if seconds is None else 1e3 * statistics.median(seconds)


def _one_image(detector: nn.Module, image: Tensor, device: torch.device) -> Callable[[], object]:
    """Return a function that detects the objects of one image and waits until the device is done."""

    @torch.inference_mode()
    def run() -> None:
        detector([image])
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return run


def _image(model: ModelRecipe, file: Path | None, channels: int) -> Tensor:
    if file is not None:
        return to_pixels(file, channels, str(file))
    width = min(model.max_size, round(ASPECT * model.min_size))
    return torch.rand(channels, model.min_size, width, generator=torch.Generator().manual_seed(0))


def _left_by_a_run(name: str) -> tuple[RunRecord | None, Mapping[str, float]]:
    """Return a detector's run and its best evaluation, as far as its folder holds them."""
    folder = expand_home(os.fspath(name))
    if (folder / "recipe.yaml").is_file() and (folder / "metrics.jsonl").is_file():
        run = read_run(folder)
        if run.best is not None:
            return run, {key: value for key, value in run.best.items() if isinstance(value, int | float)}
        return run, {}
    if (folder / "metrics.json").is_file():  # of `vovnet evaluate`
        return None, flat_metrics(read_json(folder / "metrics.json"))
    return None, {}


def _markdown(rows: Sequence[Row]) -> list[str]:
    cells = [list(COLUMNS), *(row.cells() for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(COLUMNS))]
    lines = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in cells]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]


def _notes(rows: Sequence[Row], runs: Sequence[RunRecord | None], timing: str) -> list[str]:
    """Return what the numbers mean, as a list in Markdown."""
    notes = [f"- Rows: {', '.join(_cell(row.name) for row in rows)}"]
    if any(row.milliseconds is not None for row in rows):
        notes.append(f"- Inference time: {timing}")
    trained = {(run.on_gpu, run.device or "an unknown device") for run in runs if run is not None and run.memory}
    for on_gpu, device in sorted(trained):
        what = "allocated by PyTorch at the peak" if on_gpu else "the peak of the whole process, on a CPU"
        notes.append(f"- Training memory on {_cell(device)}: {what}")
    if any(row.scores for row in rows):
        notes.append("- AP in percent, on the validation data of each run: the evaluation whose weights were kept")
    return notes


def _cell(text: str) -> str:
    return printable(text).replace("|", "\\|")
