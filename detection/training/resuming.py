"""Go on from ``last.pt``: read it, refuse what is another run's, and restore a run's state."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vovnet.detection import distributed
from vovnet.detection.config.categories import Category, plain_categories
from vovnet.detection.config.loading import recipe_from_dict, recipe_to_dict
from vovnet.detection.config.schema import Recipe
from vovnet.detection.training.run import Run
from vovnet.detection.training.state import load_state, restore_random_state
from vovnet.errors import InputError
from vovnet.terminal.streams import echo

STATE_KEYS = {
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
}
"""Keys of ``last.pt`` beside its format."""

FREE_ON_RESUME = {"log", "data.timeout", "data.workers", "solver.max_iterations", "solver.patience"}
"""Keys of a recipe that may change when a run is resumed, because they do not change the losses."""


def load_everywhere(path: Path, categories: Sequence[Category]) -> dict[str, Any]:
    """Read the checkpoint in every process.

    Raises:
        InputError: in every process, if one cannot read it or reads that of another iteration than rank 0.
    """
    state: dict[str, Any] = {}
    problem = None
    try:
        state = _load_whole_state(path, categories)
    except InputError as error:
        problem = str(error)
    found = distributed.gather((problem, state.get("iteration")))
    for rank, (problem, iteration) in enumerate(found):
        if rank and found[0][0] is None and (problem is not None or iteration != found[0][1]):
            problem = problem or f"checkpoint '{path}': of iteration {iteration}, that of rank 0 is of {found[0][1]}"
            problem += f" (rank {rank}; all machines must see the same folder)"
        if problem is not None:
            raise InputError(problem)
    return state


def _load_whole_state(path: Path, categories: Sequence[Category]) -> dict[str, Any]:
    state = load_state(path)
    missing = sorted(STATE_KEYS - state.keys())
    if missing:
        raise InputError(
            f"checkpoint '{path}': it has no {', '.join(missing)}, so no run can be resumed from it (best.pt has only "
            "weights); start a new run from these weights with init=RUN"
        )
    if plain_categories(state["categories"]) != plain_categories(categories):
        raise InputError(
            f"checkpoint '{path}': the run was trained on categories {_names(state['categories'])}, the data has "
            f"{_names(categories)}; resume with the run's own data"
        )
    return state


def _names(categories: Iterable[Category]) -> str:
    names = [str(entry["name"]) for entry in categories]
    return ", ".join(names[:8]) + (", …" if len(names) > 8 else "")


def check_same_run(recipe: Recipe, state: Mapping[str, Any], output: Path) -> None:
    """Refuse a recipe that differs from the one of the checkpoint in more than :data:`FREE_ON_RESUME`.

    Raises:
        InputError: the message lists the keys that differ, with both values.
    """
    saved = _flat(recipe_to_dict(recipe_from_dict(state["recipe"], f"checkpoint '{output / 'last.pt'}'")))
    asked = _flat(recipe_to_dict(recipe))
    # The learning rates of a cosine depend on the number of iterations, and so does the end of the mosaics.
    by_length = recipe.solver.schedule == "cosine" or (recipe.data.mosaic and recipe.data.mosaic_off)
    free = FREE_ON_RESUME - ({"solver.max_iterations"} if by_length else set())
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
        echo(
            f"resume: {distributed.world_size()} processes instead of {state['processes']}: the run continues, but its "
            "losses will differ from those of an uninterrupted run"
        )


def check_same_transforms(asked: str | None, saved: str | None) -> None:
    """Refuse to resume with other transforms of the user's own; runs of earlier versions had none."""
    if asked != saved:
        raise InputError(
            f"--resume: the run's own transforms were {saved or 'none'}, now they are {asked or 'none'}; give the same "
            "--transforms (transforms=… in Python), or start a new run in another folder"
        )


def restore_run(run: Run, state: Mapping[str, Any]) -> None:
    """Give a run the state of its checkpoint.

    Raises:
        InputError: the checkpoint belongs to another model.
    """
    try:
        run.detector.load_state_dict(state["model"])
        run.optimizer.load_state_dict(state["optimizer"])
        if run.ema is not None:
            run.ema.load_state_dict(state["ema"])
    except (RuntimeError, ValueError, KeyError) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise InputError(
            f"checkpoint '{run.output / 'last.pt'}': it belongs to another model ({' '.join(lines[:3])[:300]}); "
            "resume with the run's own recipe.yaml"
        ) from error
    run.scaler.load_state_dict(state["scaler"])
    run.iteration = int(state["iteration"])
    run.saved = run.iteration
    run.best = float(state["best"])
    # Checkpoints of earlier versions do not tell; then an evaluation of this iteration is repeated.
    run.evaluated = int(state.get("evaluated", 0))
    run.reference, run.stale = float(state.get("reference", run.best)), int(state.get("stale", 0))
    run.metrics = dict(state.get("metrics", {}))
    run.loggers = {name: dict(names) for name, names in state.get("loggers", {}).items()}
    run.seconds_before = float(state.get("seconds", 0.0))
    run.schedule.last_epoch = int(state["schedule"]["last_epoch"])
    for group, base, factor in zip(
        run.optimizer.param_groups, run.schedule.base_lrs, run.schedule.lr_lambdas, strict=True
    ):
        group["lr"] = base * factor(run.schedule.last_epoch)
    states = state["random"]
    if distributed.rank() < len(states):
        restore_random_state(states[distributed.rank()])


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat.update(_flat(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value})
    return flat
