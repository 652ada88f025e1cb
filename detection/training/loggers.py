"""Programs that show the numbers of runs: TensorBoard, Weights & Biases, MLflow and Trackio, by name."""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from vovnet.detection.config.loading import flat_recipe, recipe_to_dict
from vovnet.detection.training.run import Run
from vovnet.errors import absent_package

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PROJECT = "vovnet"
"""The project, or MLflow's experiment, if the environment names no other."""


class Logger(ABC):
    """Where a run's numbers go. All methods are called in one thread, which is not that of the training.

    Attributes:
        package: the name to import; also the extra of vovnet that installs it.
        title: the program's own name.
        help: how the user mends a refusal, as the end of a sentence.
    """

    package: ClassVar[str]
    title: ClassVar[str]
    help: ClassVar[str]

    @classmethod
    def installed(cls) -> bool:
        """Return True if the package is installed. It is not imported."""
        return absent_package(cls.package) is None

    @abstractmethod
    def open(self, run: Run, kept: Mapping[str, str]) -> dict[str, str]:
        """Begin a record, or go on with an earlier one.

        Args:
            run: the run, before its first iteration.
            kept: what the first call returned, if the run is resumed; otherwise nothing.

        Returns:
            What names the record, so that a resumed run finds it.
        """

    @abstractmethod
    def write(self, numbers: Mapping[str, float], iteration: int) -> None:
        """Write numbers such as ``train/loss`` and ``val/box_ap`` for an iteration."""

    @abstractmethod
    def close(self, *, finished: bool) -> None:
        """End the record; ``finished`` is False if the run has iterations left."""


class TensorBoard(Logger):
    """Writes scalars to ``RUN/tensorboard``."""

    package, title = "tensorboard", "TensorBoard"
    help = "look at the folder 'tensorboard' in --output"

    def open(self, run: Run, kept: Mapping[str, str]) -> dict[str, str]:
        from torch.utils.tensorboard import SummaryWriter

        folder, purge_step = str(run.output / "tensorboard"), run.iteration + 1
        self.make_writer = lambda: SummaryWriter(folder, purge_step=purge_step)
        self.writer: SummaryWriter | None = None
        return {}

    def write(self, numbers: Mapping[str, float], iteration: int) -> None:
        if self.writer is None:  # not earlier: a run that fails at its start leaves its folder as it was
            self.previous_hook, threading.excepthook = threading.excepthook, self._hook
            self.writer = self.make_writer()
        for name, value in numbers.items():
            self.writer.add_scalar(name, value, iteration)

    def close(self, *, finished: bool) -> None:
        if self.writer is None:
            return
        try:
            self.writer.flush()  # close() does not tell of an error
            self.writer.close()
        finally:
            threading.excepthook = self.previous_hook

    def _hook(self, error: threading.ExceptHookArgs) -> None:
        """Leave out the traceback of TensorBoard's own thread: its error is raised again by the next call."""
        if not type(error.thread).__module__.startswith("tensorboard."):
            self.previous_hook(error)


class WeightsAndBiases(Logger):
    """Writes to Weights & Biases, where and as the user's own settings say (``WANDB_MODE``, ``wandb login``)."""

    package, title = "wandb", "Weights & Biases"
    help = "run `wandb login`, set WANDB_MODE=offline, or leave wandb out of log.loggers"

    def open(self, run: Run, kept: Mapping[str, str]) -> dict[str, str]:
        import wandb  # pyright: ignore[reportMissingImports]

        # It would ask for a login in the terminal, and a run that nobody watches would wait for the answer.
        online = wandb.setup().settings.mode not in ("offline", "dryrun", "disabled")
        if online and not wandb.login(prompt=False, verify=False):
            raise RuntimeError("it is online, and there is no login")
        self.run = wandb.init(
            project=kept.get("project") or os.environ.get("WANDB_PROJECT") or PROJECT,
            entity=kept.get("entity") or None,
            id=kept.get("id"),
            name=os.environ.get("WANDB_NAME") or run.output.name,
            resume="allow",
            reinit="create_new",  # a run that the caller has opened stays the caller's
            config=recipe_to_dict(run.recipe),
            settings=wandb.Settings(console="off"),  # the terminal belongs to the progress bar
        )
        self.first = int(self.run.step)
        return {"id": str(self.run.id), "project": str(self.run.project), "entity": str(self.run.entity or "")}

    def write(self, numbers: Mapping[str, float], iteration: int) -> None:
        if iteration >= self.first:  # earlier steps are refused; a resumed run repeats some, with the same numbers
            self.run.log(dict(numbers), step=iteration)

    def close(self, *, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)


class MLflow(Logger):
    """Writes to MLflow's server, database or folder that ``MLFLOW_TRACKING_URI`` names."""

    package, title = "mlflow", "MLflow"
    help = "check MLFLOW_TRACKING_URI, or leave mlflow out of log.loggers"

    def open(self, run: Run, kept: Mapping[str, str]) -> dict[str, str]:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would report to its makers at the import
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Param  # pyright: ignore[reportMissingImports]

        self.client = MlflowClient()
        with _few_retries():  # later it may ask for minutes, in its own thread
            if "id" in kept:
                self.client.update_run(kept["id"], status="RUNNING")
            self.id = kept.get("id") or self._begin(run, Param)
        return {"id": self.id}

    def _begin(self, run: Run, param: Any) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        experiment = self.client.get_experiment_by_name(name)
        number = self.client.create_experiment(name) if experiment is None else experiment.experiment_id
        begun = str(self.client.create_run(number, run_name=run.output.name).info.run_id)
        settings = flat_recipe(run.recipe)
        self.client.log_batch(begun, params=[param(key, str(value)[:500]) for key, value in settings.items()])
        return begun

    def write(self, numbers: Mapping[str, float], iteration: int) -> None:
        from mlflow.entities import Metric  # pyright: ignore[reportMissingImports]

        now = int(1000 * time.time())
        self.client.log_batch(self.id, [Metric(name, value, now, iteration) for name, value in numbers.items()])

    def close(self, *, finished: bool) -> None:
        self.client.set_terminated(self.id, "FINISHED" if finished else "KILLED")


@contextlib.contextmanager
def _few_retries() -> Iterator[None]:
    """Let MLflow ask a server that does not answer for seconds instead of minutes, unless the user has set a number."""
    name = "MLFLOW_HTTP_REQUEST_MAX_RETRIES"
    given = name in os.environ
    os.environ.setdefault(name, "3")
    try:
        yield
    finally:
        if not given:
            del os.environ[name]


class Trackio(Logger):
    """Writes to Trackio's database on this machine, or to the Space that ``TRACKIO_SPACE_ID`` names."""

    package, title = "trackio", "Trackio"
    help = "check TRACKIO_DIR and TRACKIO_SPACE_ID, or leave trackio out of log.loggers"

    def open(self, run: Run, kept: Mapping[str, str]) -> dict[str, str]:
        import trackio  # pyright: ignore[reportMissingImports]

        project = kept.get("project") or os.environ.get("TRACKIO_PROJECT") or PROJECT
        # It goes on with the latest run of that name, therefore no two may share one.
        name = kept.get("name") or f"{run.output.name}-{secrets.token_hex(3)}"
        self.run: Any = trackio.init(
            project=project,
            name=name,
            resume="allow",
            config=recipe_to_dict(run.recipe),
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )
        return {"project": project, "name": name}

    def write(self, numbers: Mapping[str, float], iteration: int) -> None:
        self.run.log(dict(numbers), step=iteration)

    def close(self, *, finished: bool) -> None:
        self.run.finish()


LOGGERS: dict[str, type[Logger]] = {cls.package: cls for cls in (TensorBoard, WeightsAndBiases, MLflow, Trackio)}
"""The loggers by their names in ``log.loggers``."""
