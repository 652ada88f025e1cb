"""COCO evaluation: seconds and memory of ours, with both backends, and of pycocotools alone, on synthetic boxes.

    python -m benchmarks.evaluation

Each evaluation runs in a process of its own, and they alternate. The clock starts when all input is in memory and
stops when the twelve numbers are computed. Ours starts from what a detector returns, a dictionary of tensors per image,
and also computes its table of classes. pycocotools starts from a list of results. All must give the same numbers.
faster-coco-eval takes part where it is installed.

Nothing heavy is imported at the top, because the ``ru_maxrss`` of a new process begins with that of its parent.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.common import Ratio, environment, positive

if TYPE_CHECKING:
    from vovnet.detection.config.fields import Backend

GOAL = 1.2
OURS, FASTER, ALONE = "vovnet", "vovnet, faster", "pycocotools alone"
CATEGORIES = 80
SIZE = (640, 480)
"""Width and height of every image in pixels."""

Records = dict[str, list[dict[str, Any]]]
"""Name of a contestant → what each of its runs returned."""


def synthetic(images: int, detections: int, objects: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return ground truth in COCO's form, and a detector's output for each image as NumPy arrays.

    Up to half of the detections lie near an object, most of them with its category. The others have random positions.
    Scores are sorted, highest first.

    Returns:
        The ground truth, and one dictionary per image: ``boxes`` float32 (N, 4) as x0, y0, x1, y1 in pixels, ``scores``
        float32 (N,), ``labels`` int64 (N,), which are also the categories' ids.
    """
    import numpy as np

    random = np.random.default_rng(0)
    truth: dict[str, Any] = {"images": [], "annotations": []}
    truth["categories"] = [{"id": number, "name": f"class {number}"} for number in range(1, CATEGORIES + 1)]
    outputs = []

    def boxes(count: int) -> Any:
        sides = np.exp(random.uniform(np.log(8), np.log(400), (count, 2)))
        corners = random.uniform(0, 1, (count, 2)) * np.maximum(np.array(SIZE) - sides, 1)
        return np.concatenate((corners, corners + sides), axis=1)

    for image_id in range(1, images + 1):
        truth["images"].append({"id": image_id, "width": SIZE[0], "height": SIZE[1]})
        there, kinds = boxes(objects), random.integers(1, CATEGORIES + 1, objects)
        crowds = random.uniform(size=objects) < 0.01
        for box, kind, crowd in zip(there.tolist(), kinds.tolist(), crowds.tolist(), strict=True):
            width, height = box[2] - box[0], box[3] - box[1]
            entry = {"id": len(truth["annotations"]) + 1, "image_id": image_id, "category_id": kind}
            shape = {"bbox": [box[0], box[1], width, height], "area": width * height, "iscrowd": int(crowd)}
            truth["annotations"].append({**entry, **shape})
        near = min(objects, (detections + 1) // 2)
        found = np.concatenate((there[:near] + random.normal(0, 4, (near, 4)), boxes(detections - near)))
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        labels = np.concatenate((kinds[:near], random.integers(1, CATEGORIES + 1, detections - near)))
        labels = np.where(random.uniform(size=detections) < 0.1, random.integers(1, CATEGORIES + 1, detections), labels)
        scores = np.sort(random.uniform(0.05, 1, detections).astype(np.float32))[::-1].copy()
        outputs.append({"boxes": found.astype(np.float32), "scores": scores, "labels": labels.astype(np.int64)})
    return truth, outputs


class Clock:
    """Seconds of wall time and of this process's CPU time since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        """Return both."""
        return {"seconds": time.perf_counter() - self.wall, "cpu": time.process_time() - self.cpu}


def evaluate_ours(
    truth: dict[str, Any], outputs: list[dict[str, Any]], backend: Backend = "pycocotools"
) -> dict[str, Any]:
    """Evaluate with ``CocoEvaluator``; return ``seconds``, ``cpu`` and COCO's twelve numbers as ``metrics``."""
    import torch

    from vovnet.detection.evaluation.coco_eval import METRICS, CocoEvaluator
    from vovnet.detection.inference_mode import image_detections

    tensors = [{key: torch.from_numpy(value) for key, value in output.items()} for output in outputs]
    category_ids = [category["id"] for category in truth["categories"]]
    outputs.clear()
    clock = Clock()
    evaluator = CocoEvaluator(truth, ["bbox"], backend=backend)
    for image, output in zip(truth["images"], tensors, strict=True):
        evaluator.update([image_detections(output, image["id"], SIZE[::-1], category_ids)])
    metrics = evaluator.summarize()
    return {**clock.read(), "metrics": [metrics["bbox"][name] for name in METRICS]}


def evaluate_alone(truth: dict[str, Any], outputs: list[dict[str, Any]]) -> dict[str, Any]:
    """Evaluate with pycocotools as its demo does; return the same as :func:`evaluate_ours`."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    results = []
    for image, output in zip(truth["images"], outputs, strict=True):
        boxes = output["boxes"]
        boxes[:, 2:] -= boxes[:, :2]
        rows = zip(boxes.tolist(), output["scores"].tolist(), output["labels"].tolist(), strict=True)
        results += [{"image_id": image["id"], "category_id": k, "bbox": box, "score": s} for box, s, k in rows]
    outputs.clear()
    with contextlib.redirect_stdout(io.StringIO()):
        clock = Clock()
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
        evaluated = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluated.evaluate()
        evaluated.accumulate()
        evaluated.summarize()
        return {**clock.read(), "metrics": [float(number) for number in evaluated.stats]}


def one_process(name: str, images: int, detections: int, objects: int) -> dict[str, Any]:
    """Run one evaluation; return ``seconds``, ``cpu``, ``metrics``, and resident MB ``before`` and at its ``peak``."""
    truth, outputs = synthetic(images, detections, objects)
    contestants: dict[str, Callable[..., dict[str, Any]]] = {
        OURS: evaluate_ours,
        FASTER: partial(evaluate_ours, backend="faster"),
        ALONE: evaluate_alone,
    }
    evaluate = contestants[name]
    # A first, tiny evaluation imports everything, so that imports count in neither time nor memory.
    evaluate(*synthetic(2, 2, 1))
    before = peak_memory()
    return {"before": before, **evaluate(truth, outputs), "peak": peak_memory()}


def peak_memory() -> float:
    """Return the peak resident memory of this process in MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, Linux kibibytes.
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def spawn(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Run :func:`one_process` in a new process and return its result."""
    command = [sys.executable, "-m", "benchmarks.evaluation", "--only", name]
    for key in ("images", "detections", "objects"):
        command += [f"--{key}", str(getattr(options, key))]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parent.parent)
    return json.loads(done.stdout.splitlines()[-1])


def compare(options: argparse.Namespace) -> Ratio:
    """Run the benchmark, print its table and return the ratio of times.

    Raises:
        RuntimeError: the numbers differ.
    """
    names = [OURS, *([FASTER] if find_spec("faster_coco_eval") else []), ALONE]
    records: Records = {name: [] for name in names}
    for number in range(options.rounds):
        for name in names if number % 2 == 0 else reversed(names):
            records[name].append(spawn(name, options))
    # The programs add up in other orders.
    numbers = {tuple(round(one, 12) for one in record["metrics"]) for taken in records.values() for record in taken}
    if len(numbers) > 1:
        raise RuntimeError(f"the numbers differ: {sorted(numbers)}")
    ratio = Ratio(
        f"seconds, {OURS} / {ALONE}",
        _quotient(records, "seconds", statistics.median),
        GOAL,
        at_least=False,
        note=f"of the least {_quotient(records, 'seconds', min):.3f}, of CPU time {_quotient(records, 'cpu', min):.3f}",
    )
    print(
        f"\nevaluation of {options.images} images x {options.detections} detections ({options.objects} objects an "
        f"image, {CATEGORIES} categories)\n{_table(records)}\nthe twelve numbers are equal in all "
        f"{len(names) * options.rounds} runs; AP {numbers.pop()[0]:.6f}\n{ratio}\n"
        f"peak memory, {OURS} / {ALONE}: {_quotient(records, 'peak', max):.3f}"
    )
    if FASTER in records:
        seconds, cpu = (_quotient(records, key, min, OURS, FASTER) for key in ("seconds", "cpu"))
        print(f"least seconds, {OURS} / {FASTER}: {seconds:.1f}; of CPU time {cpu:.1f}")
    return ratio


def _quotient(
    records: Records, key: str, summary: Callable[[list[float]], float], one: str = OURS, other: str = ALONE
) -> float:
    ours, theirs = (summary([record[key] for record in records[name]]) for name in (one, other))
    return ours / theirs


def _table(records: Records) -> str:
    width = max(map(len, records))
    lines = [f"{'':{width}}  median s   least s  least CPU s   peak MB  grown by MB (ru_maxrss, largest of the runs)"]
    for name, taken in records.items():
        seconds = [record["seconds"] for record in taken]
        times = f"{statistics.median(seconds):8.2f}  {min(seconds):8.2f}  {min(r['cpu'] for r in taken):11.2f}"
        peak, growth = max(r["peak"] for r in taken), max(r["peak"] - r["before"] for r in taken)
        lines.append(f"{name:{width}}  {times}  {peak:8.0f}  {growth:.0f}")
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    options = argparse.ArgumentParser(
        prog="python -m benchmarks.evaluation", description=(__doc__ or "").split("\n")[0]
    )
    options.add_argument("--images", type=positive, default=5000)
    options.add_argument("--detections", type=positive, default=100, help="number per image")
    options.add_argument("--objects", type=positive, default=7, help="number per image")
    options.add_argument("--rounds", type=positive, default=3, help="evaluations by each contestant")
    options.add_argument("--only", choices=[OURS, FASTER, ALONE], help="run one evaluation here and print its JSON")
    return options


def main(arguments: Sequence[str] | None = None) -> Ratio | None:
    """Parse the command line and run."""
    options = parser().parse_args(arguments)
    if options.only:
        print(json.dumps(one_process(options.only, options.images, options.detections, options.objects)))
        return None
    ratio = compare(options)
    # Printed last: it imports vovnet, and a new process's ru_maxrss begins with what its parent had.
    print(environment("vovnet", "torch", "pycocotools", "numpy"))
    return ratio


if __name__ == "__main__":
    main()
