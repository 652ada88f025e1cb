"""``environment.json``: the versions and the machine that a run was trained with."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch

from vovnet.detection import distributed
from vovnet.detection.training.run import Run
from vovnet.environment import checkout_commit, describe_machine
from vovnet.files import write_json

PACKAGES = ("vovnet", "torch", "torchvision", "timm", "numpy", "pillow", "pycocotools", "safetensors")
"""The packages whose versions are written, beside Python's."""


def write_environment(run: Run) -> None:
    """Write ``environment.json``. If a resumed run goes on elsewhere, what it said before becomes a part of it.

    The file is an object: ``from_iteration``, ``versions``, ``platform``, ``processor``, ``usable_cores``, ``threads``,
    ``processes``, ``device``, ``device_name``, ``cuda``, ``checkout`` (``commit`` and ``changed``, or null), and
    ``earlier``, a list of such objects in order.
    """
    path = run.output / "environment.json"
    before = read_environment(path) if run.iteration else {}
    now = {**machine_facts(run.device), "processes": distributed.world_size()}
    kept = {key: value for key, value in before.items() if key not in ("from_iteration", "earlier")}
    if kept == now:
        return
    earlier = before.get("earlier")
    parts = list(earlier) if isinstance(earlier, list) else []
    if kept:
        parts.append({"from_iteration": before.get("from_iteration"), **kept})
    write_json(path, {"from_iteration": run.iteration, **now, "earlier": parts})


def machine_facts(device: torch.device) -> dict[str, Any]:
    """Return versions, machine, device, PyTorch's number of threads, and the commit of the checkout of vovnet."""
    machine = describe_machine(*PACKAGES)
    versions = {name: machine[name] for name in ("python", *PACKAGES)}
    return {
        "versions": versions,
        "platform": platform.platform(),
        "processor": machine["processor"],
        "usable_cores": machine["usable cores"],
        "threads": torch.get_num_threads(),
        "device": str(device),
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "checkout": checkout_commit(),
    }


def read_environment(path: Path) -> dict[str, Any]:
    """Return the object of an ``environment.json``; an empty one if there is none that can be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
