"""Loggers beside a run: refused ones end it before it begins, failing and hanging ones cost only their own log."""

from __future__ import annotations

import errno
import random
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from support import contents
from tiny_runs import Squares, assert_same_runs, short_recipe

from vovnet.detection.training import background_log, engine
from vovnet.detection.training.background_log import BackgroundLog, logs_of
from vovnet.detection.training.callbacks import Callback
from vovnet.detection.training.engine import train
from vovnet.detection.training.loggers import LOGGERS, Logger, TensorBoard
from vovnet.detection.training.metrics_log import read_metrics
from vovnet.detection.training.run import Run
from vovnet.detection.training.signals import TrainingInterrupted
from vovnet.errors import InputError

Line = tuple[int, dict[str, float]]


class Remembering(Logger):
    """Keeps what it gets, and acts at its moments as a test says."""

    package, title, help = "wandb", "Fake", "mend it"
    actions: ClassVar[Mapping[str, Callable[[], object]]] = {}
    lines: ClassVar[list[Line]] = []
    opened: ClassVar[list[dict[str, str]]] = []
    closed: ClassVar[list[bool]] = []

    @classmethod
    def installed(cls) -> bool:
        return True

    def open(self, run: Run, kept: Mapping[str, str]) -> dict[str, str]:
        self.opened.append(dict(kept))
        self._act("open")
        return {"id": f"{len(self.opened)}", **kept}

    def write(self, numbers: Mapping[str, float], iteration: int) -> None:
        self._act("write")
        self.lines.append((iteration, dict(numbers)))

    def close(self, *, finished: bool) -> None:
        self.closed.append(finished)
        self._act("close")

    def _act(self, moment: str) -> None:
        assert threading.current_thread() is not threading.main_thread()
        self.actions.get(moment, lambda: None)()


@pytest.fixture(autouse=True)
def without_curves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "plot_curves", lambda log, out: None)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[Remembering]:
    class Fake(Remembering):
        actions: ClassVar[Mapping[str, Callable[[], object]]] = {}
        lines: ClassVar[list[Line]] = []
        opened: ClassVar[list[dict[str, str]]] = []
        closed: ClassVar[list[bool]] = []

    monkeypatch.setitem(LOGGERS, "wandb", Fake)
    return Fake


@pytest.fixture
def hanging() -> Iterator[Callable[[], None]]:
    """An action that does not end before the test does."""
    end = threading.Event()
    yield lambda: (end.wait(), None)[1]
    end.set()


def run_to(output: Path, *callbacks: Callback, loggers: Any = ("wandb",), iterations: int = 3, **options: Any) -> Any:
    recipe = short_recipe(max_iterations=iterations, evaluate_every=2)
    recipe.log.loggers = None if loggers is None else list(loggers)
    data = {"train_dataset": Squares(), "val_dataset": Squares(), "progress": False, "device": "cpu"}
    return train(recipe, output, callbacks=callbacks, **{**data, **options})


def failing(error: BaseException) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail


def test_a_logger_gets_the_numbers_of_the_metrics_file(fake: type[Remembering], tmp_path: Path) -> None:
    run_to(tmp_path)
    own = [
        (line["iteration"], {key: value for key, value in line.items() if key.startswith(("loss", "lr", "box"))})
        for line in read_metrics(tmp_path / "metrics.jsonl")
    ]
    for (at, wanted), (iteration, numbers) in zip(own, fake.lines, strict=True):
        place = "val" if "box_ap" in wanted else "train"
        assert at == iteration
        assert numbers | {f"{place}/{key}": value for key, value in wanted.items()} == numbers
    assert {key.partition("/")[0] for _, numbers in fake.lines for key in numbers} == {"train", "val"}
    assert {"train/seconds", "train/images_per_second", "train/memory"} <= fake.lines[0][1].keys()
    assert (fake.opened, fake.closed) == ([{}], [True])


def test_a_resumed_run_goes_on_with_its_record_and_equals_an_unbroken_one(
    fake: type[Remembering], tmp_path: Path
) -> None:
    class Stopping(Callback):
        def iteration(self, run: Run, losses: Mapping[str, float]) -> None:
            if run.iteration == 1:
                signal.raise_signal(signal.SIGTERM)

    with pytest.raises(TrainingInterrupted):
        run_to(tmp_path / "run", Stopping())
    assert fake.closed == [False]
    run_to(tmp_path / "run", resume=True)
    assert fake.opened == [{}, {"id": "1"}]
    assert [iteration for iteration, numbers in fake.lines if "train/loss" in numbers] == [1, 2, 3]
    fake.opened.clear()
    run_to(tmp_path / "unbroken")
    assert_same_runs(tmp_path / "run", tmp_path / "unbroken")


def test_a_logger_that_draws_random_numbers_changes_no_run(fake: type[Remembering], tmp_path: Path) -> None:
    state = random.getstate()
    fake.actions = {"open": random.random}
    run_to(tmp_path / "one")
    random.setstate(state)
    run_to(tmp_path / "other", loggers=())
    one, other = (torch.load(tmp_path / name / "last.pt", weights_only=True)["random"] for name in ("one", "other"))
    assert one[0]["python"] == other[0]["python"]


def test_a_logger_that_is_not_installed_is_named_before_the_data_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LOGGERS["mlflow"], "installed", classmethod(lambda cls: False))
    with pytest.raises(InputError, match=r"log\.loggers: mlflow .*pip install '\.\[mlflow\]'"):
        run_to(tmp_path / "run", loggers=["mlflow"], train_dataset=None)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [PermissionError(13, "no"), RuntimeError("login"), SystemExit(1), ImportError("x")])
def test_a_logger_that_refuses_ends_the_run_before_it_begins(
    error: BaseException, fake: type[Remembering], tmp_path: Path
) -> None:
    run_to(tmp_path, loggers=())
    before = contents(tmp_path)
    fake.actions = {"open": failing(error)}
    with pytest.raises(InputError, match=r"log\.loggers: wandb .*mend it") as caught:
        run_to(tmp_path, overwrite=True)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


def test_a_logger_that_does_not_answer_ends_the_run_before_it_begins(
    fake: type[Remembering], hanging: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background_log, "OPEN_SECONDS", 0.0)
    fake.actions = {"open": hanging}
    with pytest.raises(InputError, match=r"log\.loggers: wandb .*no answer"):
        run_to(tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError(""), SystemExit(1), KeyError("x")])
@pytest.mark.parametrize("moment", ["write", "close"])
def test_a_logger_that_fails_costs_one_warning(
    moment: str, error: BaseException, fake: type[Remembering], tmp_path: Path
) -> None:
    fake.actions = {moment: failing(error)}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run_to(tmp_path)
    (warning,) = [one for one in caught if "Fake's log" in str(one.message)]
    assert warning.category is RuntimeWarning
    assert type(error).__name__ in str(warning.message)
    assert [line["iteration"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 2, 3, 3]


@pytest.mark.parametrize(
    ("moment", "limit"), [("write", "CLOSE_SECONDS"), ("write", "MOST_WAITING"), ("close", "CLOSE_SECONDS")]
)
def test_a_logger_that_hangs_costs_one_warning(
    moment: str,
    limit: str,
    fake: type[Remembering],
    hanging: Callable[[], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background_log, limit, 0 if limit == "CLOSE_SECONDS" else 1)
    fake.actions = {moment: hanging}
    with pytest.warns(RuntimeWarning, match="Fake's log") as caught:
        run_to(tmp_path)
    assert len([one for one in caught if "Fake's log" in str(one.message)]) == 1
    assert [line["iteration"] for line in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 2, 3, 3]


def test_what_a_recipe_says_is_what_is_logged(monkeypatch: pytest.MonkeyPatch) -> None:
    def packages(loggers: Any) -> list[tuple[str, bool]]:
        recipe = short_recipe().log
        recipe.loggers = loggers
        return [(log.logger.package, log.required) for log in logs_of(recipe)]

    for cls in LOGGERS.values():
        monkeypatch.setattr(cls, "installed", classmethod(lambda cls: True))
    assert packages(None) == [("tensorboard", False)]
    assert packages([]) == []
    assert packages(["mlflow", "wandb", "mlflow"]) == [("mlflow", True), ("wandb", True)]
    monkeypatch.setattr(TensorBoard, "installed", classmethod(lambda cls: False))
    assert packages(None) == []


def test_a_log_that_was_never_opened_is_stopped_without_a_wait() -> None:
    log, run = BackgroundLog(Remembering(), 1, required=True), Any
    log.failure, log.over = OSError("x"), True
    log.stop(run)  # type: ignore[arg-type]


def delete_logs(output: Path) -> None:
    shutil.rmtree(output / "tensorboard")


def replace_logs(output: Path) -> None:
    delete_logs(output)
    (output / "tensorboard").write_text("a file")


def after_the_first_line(monkeypatch: pytest.MonkeyPatch, harm: Callable[[], None]) -> None:
    write = TensorBoard.write
    done: list[int] = []

    def harmed(self: TensorBoard, numbers: Mapping[str, float], iteration: int) -> None:
        write(self, numbers, iteration)
        if not done:
            harm()
        done.append(iteration)

    monkeypatch.setattr(TensorBoard, "write", harmed)


@pytest.mark.skipif(not TensorBoard.installed(), reason="needs tensorboard")
@pytest.mark.parametrize("harm", [delete_logs, replace_logs])
def test_a_run_outlives_the_folder_of_its_tensorboard(
    harm: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    hook = threading.excepthook
    after_the_first_line(monkeypatch, lambda: harm(tmp_path))
    with pytest.warns(RuntimeWarning, match="TensorBoard's log"):
        run_to(tmp_path, loggers=None)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 5
    assert "Traceback" not in capfd.readouterr().err
    assert threading.excepthook is hook


@pytest.mark.skipif(not TensorBoard.installed(), reason="needs tensorboard")
def test_a_run_outlives_a_tensorboard_on_a_full_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.compat.tensorflow_stub.io.gfile import LocalFileSystem

    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    after_the_first_line(monkeypatch, lambda: monkeypatch.setattr(LocalFileSystem, "_write", full))
    with pytest.warns(RuntimeWarning, match="No space left"):
        run_to(tmp_path, loggers=None)
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 5
    assert "Traceback" not in capfd.readouterr().err
