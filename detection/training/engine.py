"""Training: one visible loop. :func:`train` prepares a run, :func:`step` is one iteration from top to bottom."""

from __future__ import annotations

import contextlib
import math
import shutil
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vovnet.detection import distributed
from vovnet.detection.config.loading import recipe_to_yaml
from vovnet.detection.config.schema import Recipe
from vovnet.detection.config.validation import check_recipe
from vovnet.detection.data.coco import CocoDataset
from vovnet.detection.evaluation.evaluator import evaluate
from vovnet.detection.evaluation.plots import plot_curves
from vovnet.detection.training.callbacks import Callback, MetricsFile, ProgressBar, TensorBoard
from vovnet.detection.training.optimizer import scaled_learning_rate
from vovnet.detection.training.rules import conventions_of
from vovnet.detection.training.run import RUN_FILES, Run, prepare, save_if_best, save_run, tensors_only
from vovnet.errors import InputError, StoppedError
from vovnet.files import atomic_path, claim_folder

Batch = tuple[Sequence[Tensor], Sequence[dict[str, Any]]]


class TrainingInterrupted(StoppedError):
    """The run was asked to stop (Ctrl-C or SIGTERM); its state is saved and the message says how to go on."""

    exit_code = 130


class NonFiniteLossError(StoppedError, ArithmeticError):
    """The loss became NaN or infinite; the message names the iteration and the images."""


def train(
    recipe: Recipe,
    output: str | Path,
    *,
    train_dataset: Any = None,
    val_dataset: Any = None,
    callbacks: Sequence[Callback] = (),
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    device: str | torch.device | None = None,
) -> dict[str, Any]:
    """Train a detector and leave a folder that ``load_detector`` reads.

    Under torchrun every process calls this; the first one writes.

    Args:
        recipe: what to train; see :class:`vovnet.detection.config.schema.Recipe`.
        output: the folder for ``recipe.yaml``, ``metrics.jsonl``, ``last.pt``, ``best.pt``, ``config.json``,
            ``model.safetensors`` and ``curves.png``.
        train_dataset: any dataset that follows the protocol of :mod:`vovnet.detection.data`; None reads ``data.train``.
        val_dataset: likewise for ``data.val``; without one nothing is evaluated and the last weights are published.
        callbacks: watchers of your own, called after ours, in the process of rank 0.
        resume: go on from ``output/last.pt``; the losses that follow equal those of a run that never stopped.
        overwrite: replace what a former run left in ``output``.
        progress: show the progress bar.
        device: None takes this process's GPU, or the CPU where there is none.

    Returns:
        The last evaluation's metrics (empty without validation data), as :func:`vovnet.detection.evaluate` gives them.

    Raises:
        InputError: the recipe, the data, the folder or the checkpoint cannot be used.
        NonFiniteLossError: a loss became NaN or infinite; the last checkpoint is untouched.
        TrainingInterrupted: Ctrl-C or SIGTERM; the state has been saved.
    """
    check_recipe(recipe)
    conventions_of(recipe.model).check_training(recipe, resume)
    output = Path(output)
    device = distributed.choose_device(device, distributed.default_device())
    with distributed.process_group(device):
        train_dataset, val_dataset = _datasets(recipe, train_dataset, val_dataset)
        if distributed.rank() == 0:
            claim_folder(output, resume=resume, overwrite=overwrite)
        run = prepare(recipe, output, device, train_dataset.categories, resume)
        watchers: list[Callback] = []
        if distributed.rank() == 0:
            if not resume:
                _clear(output)
            with atomic_path(output / "recipe.yaml") as temporary:
                temporary.write_text(recipe_to_yaml(run.recipe), encoding="utf-8")
            watchers = [*_own_callbacks(run, progress), *callbacks]
            _announce(run, train_dataset, val_dataset)
        try:
            metrics = _loop(run, train_dataset, val_dataset, watchers)
        except StoppedError:
            _plot(run)
            raise
        _plot(run)
    return metrics


def _loop(run: Run, train_dataset: Any, val_dataset: Any, callbacks: Sequence[Callback]) -> dict[str, Any]:
    solver, log = run.recipe.solver, run.recipe.log
    conventions = conventions_of(run.recipe.model)
    batches = conventions.training_batches(
        train_dataset,
        run.recipe.data,
        batch_size=solver.batch_size // (distributed.world_size() * solver.accumulate),
        seed=solver.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        start=run.iteration * solver.accumulate,
        passes=solver.accumulate,
    )
    metrics: dict[str, Any] = {}
    with contextlib.ExitStack() as watched:
        for callback in callbacks:
            callback.start(run)
            watched.callback(callback.stop, run)
        watched.enter_context(_stop_signals(run))
        if run.iteration == solver.max_iterations:  # resumed after its end
            metrics = _evaluate(run, val_dataset, callbacks)
        while run.iteration < solver.max_iterations:
            losses = conventions.step(run, [next(batches) for _ in range(solver.accumulate)])
            for callback in callbacks:
                callback.iteration(run, losses)
            last = run.iteration == solver.max_iterations
            evaluating = last or (log.evaluate_every and run.iteration % log.evaluate_every == 0)
            if evaluating or run.stopping or run.iteration % log.checkpoint_every == 0:
                save_run(run)  # first: should the evaluation fail, the work does not go with it
            if evaluating:
                metrics = _evaluate(run, val_dataset, callbacks)
            if run.stopping and not last:
                raise TrainingInterrupted(
                    f"stopped by {signal.Signals(run.stop_signal).name} after iteration {run.iteration} of "
                    f"{solver.max_iterations}; saved to {run.output / 'last.pt'}; go on with: "
                    f"vovnet train {run.output / 'recipe.yaml'} --resume --output {run.output}"
                )
    return metrics


def step(run: Run, batches: Sequence[Batch]) -> dict[str, float]:
    """One iteration: forward and backward for each batch, then one update of the weights.

    Returns:
        The losses, averaged over batches and processes: their sum as ``loss``, and each part under torchvision's name.

    Raises:
        NonFiniteLossError: before anything is updated.
    """
    solver = run.recipe.solver
    run.wrapped.train()
    run.optimizer.zero_grad(set_to_none=True)
    summed: dict[str, Tensor] = {}
    for number, (images, targets) in enumerate(batches, start=1):
        normalised = [image.to(run.device, non_blocking=True).float() / 255 for image in images]
        truths = [{k: v.to(run.device, non_blocking=True) for k, v in tensors_only(t).items()} for t in targets]
        with _gradients_stay_local(run, number < len(batches)):
            with _autocast(run):
                losses = run.wrapped(normalised, truths)
            loss = torch.stack([value.float() for value in losses.values()]).sum() / len(batches)
            run.scaler.scale(loss).backward()
        for name, value in losses.items():
            summed[name] = summed.get(name, 0) + value.detach().float() / len(batches)
    means = _agree_on_losses(run, summed, batches)
    run.scaler.unscale_(run.optimizer)
    gradients = [p.grad for p in run.detector.parameters() if p.grad is not None]
    norm = nn.utils.get_total_norm(gradients)
    if solver.clip_grad_norm is not None:
        nn.utils.clip_grads_with_norm_(run.detector.parameters(), solver.clip_grad_norm, norm)
    # fp16's scaler expects such gradients now and then, and leaves the step out itself.
    if not run.scaler.is_enabled() and not torch.isfinite(norm):
        raise _not_finite(run, batches, f"gradient norm {norm:g}")
    run.scaler.step(run.optimizer)
    run.scaler.update()
    run.schedule.step()
    if run.ema is not None:
        run.ema.update_parameters(run.detector)
    run.iteration += 1
    return means


def _agree_on_losses(run: Run, summed: Mapping[str, Tensor], batches: Sequence[Batch]) -> dict[str, float]:
    """Mean losses over processes, and the processes' agreement on whether to stop; refuses NaN and infinity."""
    stop = torch.tensor(float(run.stop_signal), device=run.device)
    *values, stop_mean = distributed.mean_over_processes(torch.stack([*summed.values(), stop])).tolist()
    if stop_mean:
        run.stopping, run.stop_signal = True, run.stop_signal or signal.SIGTERM
    losses = {"loss": sum(values), **dict(zip(summed, values, strict=True))}
    if not math.isfinite(losses["loss"]):
        raise _not_finite(run, batches, ", ".join(f"{name} {value:g}" for name, value in losses.items()))
    return losses


def _not_finite(run: Run, batches: Sequence[Batch], values: str) -> NonFiniteLossError:
    """The error for a loss or gradients with NaN or infinity; every process comes here together."""
    local = [int(target["image_id"]) for _, targets in batches for target in targets]
    ids = [number for part in distributed.gather(local) for number in part]
    return NonFiniteLossError(
        f"the loss is not finite at iteration {run.iteration + 1}, image ids {ids} ({values}); the last checkpoint in "
        f"{run.output} is intact; lower solver.base_lr, set solver.clip_grad_norm, or look at these images"
    )


def _evaluate(run: Run, dataset: Any, callbacks: Sequence[Callback]) -> dict[str, Any]:
    """Evaluate, tell the callbacks, and keep the weights (and the memory of it) if they are the best so far."""
    if dataset is None:
        return {}
    detector: Any = run.published
    detector.categories = run.categories
    # Each process has seen other images; what is evaluated must be what is saved, which is that of rank 0.
    distributed.share_buffers(detector)
    # Random numbers that an evaluation draws must not change the training that follows.
    with torch.random.fork_rng(devices=[run.device] if run.device.type == "cuda" else []):
        metrics = evaluate(detector, dataset, device=run.device, workers=run.recipe.data.workers)
    metrics = distributed.from_main(metrics)
    if save_if_best(run, metrics["segm" if "segm" in metrics else "bbox"]["AP"], metrics):
        save_run(run)
    for callback in callbacks:
        callback.evaluation(run, metrics)
    return metrics


def _datasets(recipe: Recipe, train_dataset: Any, val_dataset: Any) -> tuple[Any, Any]:
    masks = recipe.model.detector == "mask_rcnn"
    data, channels = recipe.data, recipe.model.in_chans
    if train_dataset is None:
        if not data.train:
            raise InputError(
                "data.train: no training data; give it as data.train=[{images: FOLDER, annotations: FILE.json}]"
            )
        train_dataset = conventions_of(recipe.model).training_data(
            data.train, masks=masks, training=True, keep_empty=data.keep_empty, channels=channels
        )
    if val_dataset is None and data.val:
        val_dataset = CocoDataset(
            data.val, masks=masks, training=False, channels=channels, categories=train_dataset.categories
        )
    if len(train_dataset) == 0:
        raise InputError("data.train: the dataset has no usable images; run `vovnet check-data` on it")
    return train_dataset, val_dataset


def _clear(output: Path) -> None:
    """Remove what a former run left, so that no file of this folder is older than its recipe."""
    for name in RUN_FILES:
        (output / name).unlink(missing_ok=True)
    shutil.rmtree(output / "tensorboard", ignore_errors=True)


def _plot(run: Run) -> None:
    """``curves.png``, once anything has been logged."""
    log = run.output / "metrics.jsonl"
    if distributed.rank() == 0 and log.exists() and log.stat().st_size:
        plot_curves(log, run.output / "curves.png")


def _own_callbacks(run: Run, progress: bool) -> list[Callback]:
    log = run.recipe.log
    own: list[Callback] = [MetricsFile(run.output / "metrics.jsonl", log.log_every)]
    if progress:
        own.append(ProgressBar())
    if TensorBoard.installed():
        own.append(TensorBoard(run.output / "tensorboard", log.log_every))
    return own


def _announce(run: Run, train_dataset: Any, val_dataset: Any) -> None:
    solver, model = run.recipe.solver, run.recipe.model
    parameters = sum(parameter.numel() for parameter in run.detector.parameters()) / 1e6
    lines = [
        f"{model.detector} with {model.backbone}: {parameters:.1f} M parameters, {model.num_classes} classes, "
        f"on {run.device} × {distributed.world_size()}, autocast {solver.amp}",
        f"data: {len(train_dataset)} training images, {0 if val_dataset is None else len(val_dataset)} for validation",
        f"learning rate {scaled_learning_rate(solver):g} = {solver.base_lr:g} × {solver.batch_size} images / "
        f"{solver.reference_batch_size}; {solver.max_iterations} iterations of {solver.batch_size} images "
        f"({solver.max_iterations * solver.batch_size / len(train_dataset):.1f} epochs)",
    ]
    dropped = getattr(train_dataset, "dropped_summary", None)
    if dropped:
        lines.append(f"data left out: {dropped}")
    if run.iteration:
        lines.append(f"resumed after iteration {run.iteration}")
    print("\n".join(lines), file=sys.stderr, flush=True)


@contextlib.contextmanager
def _stop_signals(run: Run) -> Iterator[None]:
    """Turn the first Ctrl-C or SIGTERM into a wish to stop after this iteration; the second one stops at once."""

    def wish(number: int, frame: FrameType | None) -> None:
        if run.stop_signal:
            raise KeyboardInterrupt
        run.stop_signal = number
        run.stopping = distributed.world_size() == 1  # several processes have to agree first

    try:
        former = {number: signal.signal(number, wish) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, where no handler can be set
        former = {}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _autocast(run: Run) -> contextlib.AbstractContextManager[Any]:
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = dtypes.get(run.recipe.solver.amp)
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(run.device.type, dtype=dtype)


def _gradients_stay_local(run: Run, local: bool) -> contextlib.AbstractContextManager[Any]:
    """Only the last of the accumulated backward passes exchanges gradients between processes."""
    if local and isinstance(run.wrapped, DistributedDataParallel):
        return run.wrapped.no_sync()
    return contextlib.nullcontext()
