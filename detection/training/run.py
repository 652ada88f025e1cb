"""A training run: what it is made of, how it is prepared, saved and continued."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import PARAM_LIST as ParamList
from torch.optim.swa_utils import AveragedModel

from vovnet.detection import distributed
from vovnet.detection.checkpoints.config_json import compose_config
from vovnet.detection.checkpoints.folder import save_detector
from vovnet.detection.checkpoints.initialize import load_matching
from vovnet.detection.config.loading import recipe_from_dict, recipe_to_dict
from vovnet.detection.config.schema import Recipe
from vovnet.detection.models.assembly import build_detector
from vovnet.detection.training.rules import conventions_of
from vovnet.detection.training.state import load_state, random_state, restore_random_state, save_state
from vovnet.errors import InputError
from vovnet.memory import has_osa_blocks, memory_efficient

RUN_FILES = ("recipe.yaml", "metrics.jsonl", "last.pt", "best.pt", "model.safetensors", "config.json", "curves.png")

STATE_KEYS = frozenset(
    [
        "recipe",
        "categories",
        "iteration",
        "best",
        "model",
        "ema",
        "optimizer",
        "schedule",
        "scaler",
        "random",
        "processes",
    ]
)
"""What ``last.pt`` holds beside its format."""

FREE_ON_RESUME = {"log", "data.workers", "solver.max_iterations"}
"""Keys of a recipe that may change on resumption, because the losses stay the same."""


@dataclass
class Run:
    """A training run under way: what :func:`vovnet.detection.training.engine.step` works on and what callbacks see."""

    recipe: Recipe
    output: Path
    device: torch.device
    detector: nn.Module
    """The bare detector; its state dict is what is saved."""
    wrapped: nn.Module
    """The detector, or DistributedDataParallel around it."""
    categories: list[dict[str, Any]]
    optimizer: torch.optim.Optimizer
    schedule: LambdaLR
    scaler: torch.amp.GradScaler
    ema: AveragedModel | None
    iteration: int = 0
    """Finished optimizer steps."""
    best: float = -math.inf
    """The best evaluation so far: mask AP for Mask R-CNN, else box AP."""
    stop_signal: int = 0
    """The signal that asked this process to stop; 0 for none."""
    stopping: bool = False
    """Whether all processes have agreed to stop after this iteration."""

    @property
    def last_lr(self) -> float:
        """The learning rate of the last update, of the first parameter group."""
        return float(self.schedule.base_lrs[0] * self.schedule.lr_lambdas[0](max(0, self.schedule.last_epoch - 1)))

    @property
    def published(self) -> nn.Module:
        """The detector whose weights are evaluated and published: the moving average where the recipe asks for one."""
        return self.detector if self.ema is None else self.ema.module


def prepare(
    recipe: Recipe, output: Path, device: torch.device, categories: Sequence[Mapping[str, Any]], resume: bool
) -> Run:
    """Build the detector, the optimizer and the rest; on resumption give them the state that they had.

    Raises:
        InputError: the recipe cannot be used with these categories or processes, or the checkpoint is of another run.
    """
    _check_batch_size(recipe)
    recipe = _with_precision(_with_classes(recipe, len(categories)), device)
    state = _load_whole_state(output / "last.pt", categories) if resume else None
    if state is not None:
        _check_same_run(recipe, state, output)
    conventions = conventions_of(recipe.model)
    torch.manual_seed(recipe.solver.seed)
    if recipe.solver.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it torch refuses cuBLAS
        torch.use_deterministic_algorithms(True)
    # On resumption the backbone's weights come from the checkpoint: they are not fetched again.
    detector = build_detector(recipe.model, download=state is None and recipe.init is None)
    if recipe.init is not None and state is None:
        renewed = load_matching(detector, recipe.init, recipe.model.conventions)
        if distributed.rank() == 0:
            print(f"init: weights from {recipe.init}; started anew: {', '.join(renewed) or 'nothing'}")
    compose_config(detector, recipe.model, categories)  # what cannot be stored is refused before the training
    detector.to(device)
    if recipe.solver.memory != "plain" and has_osa_blocks(detector):
        memory_efficient(detector, recipe.solver.memory)
    if recipe.solver.channels_last:
        detector.to(memory_format=torch.channels_last)
    optimizer = conventions.build_optimizer(detector, recipe.solver)
    wrapped: nn.Module = detector
    if distributed.world_size() > 1:
        wrapped = DistributedDataParallel(detector, device_ids=[device] if device.type == "cuda" else None)
    run = Run(
        recipe=recipe,
        output=output,
        device=device,
        detector=detector,
        wrapped=wrapped,
        categories=_plain(categories),
        optimizer=optimizer,
        schedule=conventions.build_schedule(optimizer, recipe.solver),
        scaler=torch.amp.GradScaler(device.type, enabled=recipe.solver.amp == "fp16"),
        ema=_moving_average(detector, recipe.solver.ema),
    )
    # Each process draws its own anchors and boxes.
    torch.manual_seed(recipe.solver.seed + distributed.rank())
    if state is not None:
        _restore(run, state)
    return run


def save_run(run: Run) -> None:
    """Write ``last.pt``; without any evaluation so far also the weights that are published."""
    states = distributed.gather(random_state())
    if distributed.rank() != 0:
        return
    save_state(
        run.output / "last.pt",
        {
            "recipe": recipe_to_dict(run.recipe),
            "categories": run.categories,
            "iteration": run.iteration,
            "best": run.best,
            "model": run.detector.state_dict(),
            "ema": None if run.ema is None else run.ema.state_dict(),
            "optimizer": run.optimizer.state_dict(),
            "schedule": {"last_epoch": run.schedule.last_epoch},
            "scaler": run.scaler.state_dict(),
            "random": states,
            "processes": distributed.world_size(),
        },
    )
    if run.best == -math.inf:
        publish(run)


def save_if_best(run: Run, score: float, metrics: Mapping[str, Any]) -> bool:
    """Keep the weights as ``best.pt`` and publish them if no evaluation was better; says whether that was so."""
    if not score > run.best:
        return False
    run.best = score
    if distributed.rank() == 0:
        save_state(
            run.output / "best.pt",
            {
                "recipe": recipe_to_dict(run.recipe),
                "categories": run.categories,
                "iteration": run.iteration,
                "metrics": dict(metrics),
                "model": run.published.state_dict(),
            },
        )
        publish(run)
    return True


def publish(run: Run) -> None:
    """Write ``model.safetensors`` and ``config.json``, which make the run's folder one that ``load_detector`` reads."""
    save_detector(run.output, run.published, run.recipe.model, run.categories)


def tensors_only(target: Mapping[str, Any]) -> dict[str, Tensor]:
    """What of a target the detector reads."""
    return {key: target[key] for key in ("boxes", "labels", "masks", "polygons") if key in target}


def _check_batch_size(recipe: Recipe) -> None:
    parts = distributed.world_size() * recipe.solver.accumulate
    size = recipe.solver.batch_size
    if size % parts:
        raise InputError(
            f"solver.batch_size: expected a multiple of processes × solver.accumulate = {parts}, got {size}; "
            f"try {max(1, round(size / parts)) * parts}"
        )


def _with_classes(recipe: Recipe, number: int) -> Recipe:
    """The recipe with the number of classes of the training data filled in."""
    wanted = recipe.model.num_classes
    if wanted is not None and wanted != number:
        raise InputError(
            f"model.num_classes: the recipe says {wanted}, the training data has {number} categories; "
            "leave it out to take the data's"
        )
    return replace(recipe, model=replace(recipe.model, num_classes=number))


def _with_precision(recipe: Recipe, device: torch.device) -> Recipe:
    """The recipe with ``auto`` replaced by what it means on this device, so that the run's recipe.yaml repeats it."""
    if recipe.solver.amp != "auto":
        return recipe
    amp = "bf16" if distributed.computes_with_bf16(device) else "none"
    return replace(recipe, solver=replace(recipe.solver, amp=amp))


def _load_whole_state(path: Path, categories: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    state = load_state(path)
    missing = sorted(STATE_KEYS - state.keys())
    if missing:
        raise InputError(
            f"checkpoint '{path}': has no {', '.join(missing)}, so it is not one to resume from (best.pt holds weights "
            "alone); start a new run from these weights with init=RUN"
        )
    if _plain(state["categories"]) != _plain(categories):
        raise InputError(
            f"checkpoint '{path}': the run was on categories {_names(state['categories'])}, the data has "
            f"{_names(categories)}; resume with the run's own data"
        )
    return state


def _plain(categories: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{"id": int(entry["id"]), "name": str(entry["name"])} for entry in categories]


def _names(categories: Iterable[Mapping[str, Any]]) -> str:
    names = [str(entry["name"]) for entry in categories]
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


def _check_same_run(recipe: Recipe, state: Mapping[str, Any], output: Path) -> None:
    saved = _flat(recipe_to_dict(recipe_from_dict(state["recipe"], f"checkpoint '{output / 'last.pt'}'")))
    asked = _flat(recipe_to_dict(recipe))
    # A cosine's rates depend on its length.
    free = FREE_ON_RESUME - ({"solver.max_iterations"} if recipe.solver.schedule == "cosine" else set())
    changed = [
        f"{key} (was {saved.get(key)}, now {asked.get(key)})"
        for key in sorted(saved.keys() | asked.keys())
        if saved.get(key) != asked.get(key) and key not in free and key.split(".")[0] not in free
    ]
    if changed:
        raise InputError(
            f"--resume: the recipe differs from the run's in {'; '.join(changed)}; "
            f"resume with {output / 'recipe.yaml'}, or start a new run in another folder"
        )
    if state["processes"] != distributed.world_size() and distributed.rank() == 0:
        print(
            f"resume: {distributed.world_size()} processes instead of {state['processes']}: the run goes on, but its "
            "losses will not equal those of an uninterrupted run"
        )


def _restore(run: Run, state: Mapping[str, Any]) -> None:
    try:
        run.detector.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        if run.ema is not None:
            run.ema.load_state_dict(state["ema"])
    except (RuntimeError, ValueError, KeyError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise InputError(
            f"checkpoint '{run.output / 'last.pt'}': is of another model ({' '.join(lines[:3])[:300]}); "
            "resume with the run's own recipe.yaml"
        ) from error
    run.scaler.load_state_dict(state["scaler"])
    run.iteration = int(state["iteration"])
    run.best = float(state["best"])
    run.schedule.last_epoch = int(state["schedule"]["last_epoch"])
    for group, base, factor in zip(
        run.optimizer.param_groups, run.schedule.base_lrs, run.schedule.lr_lambdas, strict=True
    ):
        group["lr"] = base * factor(run.schedule.last_epoch)
    states = state["random"]
    if distributed.rank() < len(states):
        restore_random_state(states[distributed.rank()])


def _moving_average(detector: nn.Module, decay: float | None) -> AveragedModel | None:
    if decay is None:
        return None

    def average(kept: ParamList, current: ParamList, updates: Tensor | int) -> None:
        # The decay grows over the first updates, so that the random start is forgotten.
        done = int(updates)
        torch._foreach_lerp_(kept, current, 1 - min(decay, (1 + done) / (10 + done)))

    return AveragedModel(detector, multi_avg_fn=average)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value})
    return flat
