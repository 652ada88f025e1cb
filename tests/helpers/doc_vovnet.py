"""Shell blocks of the docs in tests: each command as it is written, but small.

Trainings are two iterations on images of 64 pixels, from random weights, since nothing is downloaded. The keys below
take the place of the page's own, which ``test_overrides_and_recipes_exist`` reads. Results of a block before may be
replaced, since pages show several commands for one folder. Nothing else is changed.
"""

from __future__ import annotations

import glob
import os
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from doc_blocks import ROOT
from support import command

SMALL = {
    "solver.max_iterations": "2",
    "solver.steps": "[]",
    "solver.epochs": "null",
    "solver.warmup_iterations": "0",
    "solver.batch_size": "2",
    "solver.reference_batch_size": "2",
    "solver.accumulate": "1",
    "log.evaluate_every": "0",
    "log.evaluate_epochs": "null",
    "log.loggers": "[]",
    "data.workers": "0",
    "data.train_min_sizes": "[64]",
    "data.train_max_size": "96",
    "model.pretrained": "false",
    "model.norm": "bn",
    "model.min_size": "64",
    "model.max_size": "96",
    "model.rpn_pre_nms_top_n_train": "50",
    "model.rpn_pre_nms_top_n_test": "50",
    "model.rpn_post_nms_top_n_train": "20",
    "model.rpn_post_nms_top_n_test": "20",
}
REPLACES = ("train", "evaluate", "predict", "export", "convert-data")
"""Commands that refuse a folder with results."""


def small(overrides: Iterable[str]) -> list[str]:
    """The overrides of a training, with the keys above in the place of those that it gives."""
    kept = [text for text in overrides if text.partition("=")[0] not in SMALL]
    return [*kept, *(f"{key}={value}" for key, value in SMALL.items())]


def arguments(given: list[str]) -> list[str]:
    """The arguments of ``vovnet`` for those of a page."""
    words = list(given)
    if words and words[0] == "train" and "--help" not in words:
        texts = [word for word in words[2:] if "=" in word and not word.startswith("-")]
        words = [word for word in words if word not in texts] + small(texts)
    if words and words[0] in REPLACES and not {"--resume", "--auto-resume", "--overwrite", "--help"} & set(words):
        words.append("--overwrite")
    return words


def run_line(line: str, place: str) -> None:
    """Run a line of a shell block: ``vovnet`` in this process, which saves an import of torch, others by bash."""
    words = [path for word in shlex.split(line, comments=True) for path in sorted(glob.glob(word)) or [word]]
    if words[:1] == ["vovnet"]:
        done = command(*arguments(words[1:]))
        assert done.code == 0, f"{place}: {line}\n{done.out[-1000:]}\n{done.err[-1000:]}"
    elif words:
        programs = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
        modules = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        environment = os.environ | {"PATH": programs, "PYTHONPATH": modules}
        subprocess.run(["bash", "-euo", "pipefail", "-c", line], env=environment, check=True, capture_output=True)


def run_block(text: str, place: str) -> None:
    """Run a shell block line by line; a backslash at the end of a line continues it."""
    for line in text.replace("\\\n", " ").splitlines():
        run_line(line, place)
