"""The claim of a training run to its folder, and what the run finds there."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vovnet.detection import distributed
from vovnet.detection.training.run import RUN_FILES
from vovnet.errors import InputError
from vovnet.folders.claim import claimed_folder, foreign_entries

Resume = bool | Literal["auto"]

STARTED = {"recipe.yaml", "environment.json", "metrics.jsonl", "curves.png"}
"""The files that a run writes before its first checkpoint, beside ``tensorboard/``. They hold no trained weights."""

PATIENCE_SECONDS = {False: 0.0, True: 5.0, "auto": 120.0}
"""How long a run waits until a killed process has let the folder go. A lost machine's lock on NFS lives 90 seconds."""


def resume_mode(resume: bool, auto_resume: bool) -> Resume:
    """Return what the options ``--resume`` and ``--auto-resume`` mean together.

    Raises:
        InputError: both are given.
    """
    if resume and auto_resume:
        raise InputError("--resume and --auto-resume: expected one of them, got both")
    return "auto" if auto_resume else resume


@dataclass
class Claim:
    """A folder that belongs to this run as long as it lasts."""

    output: Path
    resumes: bool = False
    """True if the run goes on from ``last.pt``."""
    was_empty: bool = False
    begun: bool = False

    def begin(self) -> None:
        """Remove the files of an earlier run, so that no file is older than ``recipe.yaml``, if this run starts."""
        self.begun = True
        if not self.resumes:
            _clear(self.output)


@contextlib.contextmanager
def claimed_run(output: Path, *, resume: Resume, overwrite: bool) -> Iterator[Claim]:
    """Claim the folder in the process of rank 0, and yield what it found in every process.

    A run that fails before its first logged iteration leaves an empty folder as it was.

    Raises:
        InputError: in every process, if the folder cannot be used.
    """
    if resume == "auto" and overwrite:
        raise InputError("--auto-resume and --overwrite: expected one of them, got both")
    claim, problem = Claim(output), None
    with contextlib.ExitStack() as stack:
        with distributed.patience():
            if distributed.rank() == 0:
                try:
                    waiting = claimed_folder(
                        output, overwrite=overwrite, resume=bool(resume), patience=PATIENCE_SECONDS[resume]
                    )
                    stack.enter_context(waiting)
                    claim.was_empty = not foreign_entries(output)
                    claim.resumes = _goes_on(output) if resume == "auto" else resume
                except InputError as error:
                    problem = str(error)
        problem, claim.resumes = distributed.from_main((problem, claim.resumes))
        if problem is not None:
            raise InputError(problem)
        try:
            yield claim
        except BaseException:
            if claim.begun and claim.was_empty and _holds_nothing(output):
                _clear(output)
            raise


def _goes_on(output: Path) -> bool:
    """True if there is a checkpoint to go on from, and False if there is nothing or an interrupted start."""
    if (output / "last.pt").is_file():
        return True
    foreign = [name for name in foreign_entries(output) if name not in STARTED and not _is_log(output / name)]
    if foreign:
        raise InputError(
            f"--output '{output}': there is no last.pt to go on from, but {', '.join(foreign[:3])}; name another "
            "folder, or give --overwrite"
        )
    return False


def _is_log(path: Path) -> bool:
    if path.name != "tensorboard" or path.is_symlink() or not path.is_dir():
        return False
    return all(entry.name.startswith("events.out.tfevents") for entry in path.iterdir())


def _holds_nothing(output: Path) -> bool:
    """True if neither a checkpoint nor a line of the log has been written."""
    log = output / "metrics.jsonl"
    return not (output / "last.pt").exists() and not (log.exists() and log.stat().st_size)


def _clear(output: Path) -> None:
    for name in RUN_FILES:
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(output / "tensorboard", ignore_errors=True)
