"""``vovnet`` as the code blocks of the docs call it in tests: each command as it is written, but small.

Trainings are two iterations on images of 64 pixels: the keys below take the place of the page's own, which
``test_overrides_and_recipes_exist`` reads. Results of a block before may be replaced, since pages show several commands
for one folder. Nothing else is changed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from unittest import mock

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


def main() -> None:
    from vovnet.cli import main as run

    with mock.patch.object(sys, "argv", ["vovnet", *arguments(sys.argv[1:])]):
        run()


if __name__ == "__main__":
    main()
