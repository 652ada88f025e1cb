"""Train a detector: one visible loop, in :func:`_loop`. One iteration of it is :func:`.iteration.step`."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from vovnet.detection import distributed
from vovnet.detection.checkpoints.initialize import with_network_of_init
from vovnet.detection.config.data import DataRecipe
from vovnet.detection.config.detectors import DETECTORS
from vovnet.detection.config.fields import AUTO
from vovnet.detection.config.loading import recipe_to_yaml
from vovnet.detection.config.schema import Recipe
from vovnet.detection.config.validation import check_recipe
from vovnet.detection.data.collation import Batch
from vovnet.detection.data.failures import loader_failures
from vovnet.detection.data.object_sizes import sizes_of
from vovnet.detection.data.protocol import DetectionDataset
from vovnet.detection.data.user_transforms import Transforms, name_of
from vovnet.detection.evaluation.backends import check_backend
from vovnet.detection.evaluation.evaluator import EvaluationStopped, evaluate
from vovnet.detection.figures import warn_without_plot
from vovnet.detection.inference_mode import check_number_type
from vovnet.detection.training.announcement import announce
from vovnet.detection.training.background_log import logs_of, open_logs
from vovnet.detection.training.batch_memory import with_reference_batch
from vovnet.detection.training.batch_sheet import checked_sheet_path, write_batch_sheet
from vovnet.detection.training.callbacks import BestEffort, Callback, MetricsFile, ProgressBar
from vovnet.detection.training.claim import claimed_run
from vovnet.detection.training.compiling import uncompiled
from vovnet.detection.training.curves import plot_curves
from vovnet.detection.training.datasets import datasets_of, with_crops, with_statistics, with_transforms
from vovnet.detection.training.environment_file import write_environment
from vovnet.detection.training.length import with_iterations
from vovnet.detection.training.limits import warn_of_training_limits
from vovnet.detection.training.norm_check import check_norm_values
from vovnet.detection.training.preparation import prepare
from vovnet.detection.training.rules import TrainingRules, rules_of
from vovnet.detection.training.run import Run, save_if_best, save_run
from vovnet.detection.training.signals import agree_to_stop, stop_signals, stopped
from vovnet.detection.training.val_loss import validation_losses
from vovnet.errors import InputError, StoppedError
from vovnet.files import write_text
from vovnet.folders.home import expand_home
from vovnet.processes.devices import choose_device, default_device
from vovnet.terminal.streams import is_quiet, say


def train(
    recipe: Recipe,
    output: str | Path,
    *,
    train_dataset: DetectionDataset | None = None,
    val_dataset: DetectionDataset | None = None,
    transforms: Transforms | None = None,
    show_batch: str | Path | None = None,
    callbacks: Sequence[Callback] = (),
    resume: bool | Literal["auto"] = False,
    overwrite: bool = False,
    progress: bool = True,
    device: str | torch.device | None = None,
    time_limit: float | None = None,
) -> dict[str, Any]:
    """Train a detector and write a folder that ``load_detector`` reads.

    Under torchrun every process calls this function, and the first one writes. A signal (Ctrl-C, SIGTERM, SIGHUP,
    SIGUSR1, SIGUSR2) stops the run after its iteration; a second Ctrl-C stops it at once.

    Args:
        recipe: describes the run; see :class:`vovnet.detection.config.schema.Recipe`.
        output: the folder for ``recipe.yaml``, ``metrics.jsonl``, ``last.pt``, ``best.pt``, ``config.json``,
            ``model.safetensors`` and ``curves.png``.
        train_dataset: any dataset that follows the protocol of :mod:`vovnet.detection.data`; None reads ``data.train``.
        val_dataset: the same for ``data.val``. Without validation data nothing is evaluated, and the last weights are
            published.
        transforms: your own training transforms, which come before the recipe's: a function of ``(image, target)``,
            such as torchvision's v2 transforms, or a ``Compose`` of Albumentations with ``bbox_params``. They are tried
            on some samples first. A recipe does not record them, and resuming needs the same.
        show_batch: a PNG file for the first training images, as the transforms leave them, with their objects.
        callbacks: your own callbacks; they are called after the built-in ones, in the process of rank 0.
        resume: continue from ``output/last.pt``; losses, metrics and weights equal those of a run without interruption.
            ``"auto"`` does so if the file exists, and starts the run if nothing or an interrupted start is there.
        overwrite: replace the files of an earlier run in ``output``.
        progress: show a progress bar.
        device: None selects the GPU of this process, or the CPU if there is none.
        time_limit: seconds from the call of this function after which the run stops as by a signal, so that it can be
            resumed; None sets no limit.

    Returns:
        The metrics of the last evaluation, as :func:`vovnet.detection.evaluate` returns them; empty without validation
        data.

    Raises:
        InputError: the recipe, the data, the folder or the checkpoint cannot be used.
        NonFiniteLossError: a loss became NaN or infinite; the last checkpoint is intact.
        TrainingInterrupted: a signal or the time limit stopped the run; the message says how to continue.
        LoaderError: a loader process died or did not answer within ``data.timeout``.
        ProcessLostError: the same for another process of the run.
    """
    began = time.monotonic()
    check_recipe(recipe)
    check_number_type(
        "torch's default dtype is", torch.get_default_dtype(), "call torch.set_default_dtype(torch.float32)"
    )
    recipe = with_network_of_init(recipe)
    check_backend(recipe.log.evaluate_backend, "log.evaluate_backend")
    rules, logs = rules_of(recipe.model), logs_of(recipe.log)
    device = choose_device(device, default_device())
    output = expand_home(output)
    if show_batch is not None:
        show_batch = checked_sheet_path(show_batch)
    with (
        loader_failures(),
        distributed.process_group(device, recipe.data.timeout),
        stop_signals() as signals,
        claimed_run(output, resume=resume, overwrite=overwrite) as claim,
        contextlib.ExitStack() as stack,
    ):
        automatic, recipe = recipe.solver.batch_size is AUTO, with_reference_batch(recipe)
        rules.check_training(recipe, claim.resumes)
        with distributed.patience():
            train_dataset, val_dataset = datasets_of(recipe, rules, train_dataset, val_dataset)
            recipe = with_statistics(recipe, train_dataset)
            train_dataset = with_crops(recipe, train_dataset)
            if transforms is not None:
                train_dataset = with_transforms(recipe, rules, train_dataset, transforms)
        recipe = with_iterations(recipe, len(train_dataset))
        if recipe.solver.patience is not None and val_dataset is None:
            raise InputError("solver.patience: it needs data.val to evaluate; give both or neither")
        processes = distributed.world_size()
        images = 1 if automatic else recipe.solver.batch_size // (processes * recipe.solver.accumulate)
        check_norm_values(recipe, train_dataset, val_dataset, images, processes)
        run = prepare(
            recipe,
            rules,
            output,
            device,
            train_dataset.categories,
            claim.resumes,
            transforms=name_of(transforms),
            automatic=automatic,
        )
        run.evaluates = val_dataset is not None
        run.deadline = math.inf if time_limit is None else began + time_limit
        stack.enter_context(open_logs(run, logs))
        all_callbacks: list[Callback] = []
        if distributed.rank() == 0:
            claim.begin()
            write_text(output / "recipe.yaml", recipe_to_yaml(run.recipe))
            write_environment(run)
            all_callbacks = [*_own_callbacks(run, progress), *logs, *callbacks]
            announce(run, train_dataset, val_dataset)
        if (sizes := sizes_of(train_dataset)) is not None:
            run.median_object, run.median_image = sizes.median, sizes.median_image
            if distributed.rank() == 0:
                warn_of_training_limits(run.recipe, sizes)
        signals.run = run
        if show_batch is not None and distributed.rank() == 0:
            with contextlib.closing(_batches(replace(run.recipe.data, workers=0), run, rules, train_dataset)) as shown:
                write_batch_sheet(shown, run.categories, show_batch)
        try:
            _loop(run, rules, train_dataset, val_dataset, all_callbacks)
        except StoppedError:
            _plot(run)
            raise
        _plot(run)
        if run.exhausted and distributed.rank() == 0:
            solver = run.recipe.solver
            say(
                f"ended early after iteration {run.iteration}: no AP of the last {run.stale} evaluations was more than "
                f"{solver.min_delta:g} above {run.reference:.3g} (solver.patience, solver.min_delta)"
            )
    return run.metrics


def _loop(
    run: Run,
    rules: TrainingRules,
    train_dataset: DetectionDataset,
    val_dataset: DetectionDataset | None,
    callbacks: Sequence[Callback],
) -> None:
    solver = run.recipe.solver
    batches = _batches(run.recipe.data, run, rules, train_dataset)
    with contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.closing(batches))
        with distributed.patience():
            for callback in callbacks:
                callback.start(run)
                stack.callback(callback.stop, run)
        run.began = time.monotonic()
        while run.evaluation_due or not run.at_end:
            if run.stopping:
                raise stopped(run)
            if val_dataset is not None and run.evaluation_due:  # at once if the run was stopped before it and resumed
                _evaluate(run, val_dataset, callbacks)
                continue
            losses = rules.step(run, [next(batches) for _ in range(solver.accumulate)])
            for callback in callbacks:
                callback.iteration(run, losses)
            if distributed.world_size() == 1:  # several processes have agreed in the step
                agree_to_stop(run)
            if run.checkpoint_due:
                save_run(run)


def _batches(data: DataRecipe, run: Run, rules: TrainingRules, dataset: DetectionDataset) -> Generator[Batch]:
    """Return the batches that this process has not had yet."""
    solver = run.recipe.solver
    return rules.training_batches(
        dataset,
        data,
        batch_size=solver.batch_size // (distributed.world_size() * solver.accumulate),
        seed=solver.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        start=run.iteration * solver.accumulate,
        stop=solver.max_iterations * solver.accumulate,
        passes=solver.accumulate,
    )


def _evaluate(run: Run, dataset: DetectionDataset, callbacks: Sequence[Callback]) -> None:
    """Evaluate, save the weights if they are the best so far, and call the callbacks."""
    detector: Any = run.eval_model
    detector.categories = run.categories
    # Buffers differ between processes, which saw different images. Rank 0 saves its own, so all evaluate those.
    distributed.share_buffers(detector)
    # Random numbers drawn in an evaluation must not change the training after it.
    with torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []), uncompiled(run.recipe):
        try:
            metrics = evaluate(
                detector,
                dataset,
                device=run.device,
                workers=run.recipe.data.workers,
                timeout=run.recipe.data.timeout,
                backend=run.recipe.log.evaluate_backend,
                # An untrained detector reaches its limits everywhere; those of the data were told at the start.
                tell_limits=False,
                should_stop=lambda: _stop_wished(run),
                tile=run.recipe.data.crop,
            )
            if run.recipe.log.validation_losses:
                metrics["losses"] = validation_losses(run, dataset, lambda: _stop_wished(run))
        except EvaluationStopped:
            agree_to_stop(run)
            return
    run.evaluated, run.metrics = run.iteration, distributed.from_main(metrics)
    save_if_best(run, _kept_ap(run))
    with distributed.patience():
        for callback in callbacks:
            callback.evaluation(run, run.metrics)
    save_run(run)  # last: a run that is killed before this line is done evaluates again when it is resumed
    agree_to_stop(run)


def _stop_wished(run: Run) -> bool:
    run.note_time()
    return run.stop_signal > 0


def _kept_ap(run: Run) -> float:
    """Return the AP by which the best weights are kept; it is that of boxes if the data has nothing else."""
    kind = {"box": "bbox", "mask": "segm", "keypoint": "keypoints"}[DETECTORS[run.recipe.model.detector].kept_by]
    return float(run.metrics[kind if kind in run.metrics else "bbox"]["AP"])


def _plot(run: Run) -> None:
    """Write ``curves.png`` if anything has been logged."""
    log = run.output / "metrics.jsonl"
    if distributed.rank() == 0 and log.exists() and log.stat().st_size:
        plot = run.output / "curves.png"
        with warn_without_plot(plot):
            plot_curves(log, plot)


def _own_callbacks(run: Run, progress: bool) -> list[Callback]:
    log = run.recipe.log
    own: list[Callback] = [MetricsFile(run.output / "metrics.jsonl", log.log_every)]
    if progress and not is_quiet():
        own.append(BestEffort(ProgressBar(), "the progress bar"))
    return own
