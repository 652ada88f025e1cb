"""Find the weights that ``pretrained=True`` loads into the networks of this package."""

from __future__ import annotations

import os
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from timm.models import PretrainedCfg, resolve_pretrained_cfg

from vovnet.checkpoints.hub import V1_NOTICE, fetch, hub_errors
from vovnet.checkpoints.pickled import refuse_unreadable
from vovnet.errors import InputError, reason
from vovnet.files import WEIGHTS_FILE

NAMESPACE_VARIABLE = "VOVNET_HUB_NAMESPACE"
"""Environment variable with a user or organisation on the Hub whose repositories hold the weights (``vovnet39.in1k``).
There is no default: without it the authors' files are used, and nobody can register a name that we would trust."""


@contextmanager
def pretrained_source(variant: str, kwargs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield arguments for ``build_model_with_cfg`` that name the weights, and turn errors of loading into InputErrors.

    A file, folder, repository or URL of the caller is used as it is. Otherwise the weights come from the Hub namespace
    in ``VOVNET_HUB_NAMESPACE`` if it is set, or else from the authors' file. If one source fails, no other is tried.

    Args:
        variant: timm's name of the architecture.
        kwargs: The caller's arguments: ``pretrained_cfg``, ``pretrained_cfg_overlay`` and others.

    Raises:
        InputError: The namespace is malformed, or the weights cannot be fetched or read.
    """
    cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
    registered = resolve_pretrained_cfg(variant, cfg.tag or None)
    chosen = cfg.source or cfg.file or cfg.state_dict or cfg.hf_hub_id or cfg.url != registered.url
    if chosen or not cfg.url:
        with _from(cfg):
            yield dict(kwargs)
        return
    namespace = os.environ.get(NAMESPACE_VARIABLE, "")
    overlay = dict(kwargs.get("pretrained_cfg_overlay") or {})
    if namespace:
        repository = f"{_checked(namespace)}/{variant}.{cfg.tag}"
        with _readable_on_hub(repository):
            yield {**kwargs, "pretrained_cfg_overlay": {**overlay, "hf_hub_id": repository}}
        return
    file = str(fetch(str(cfg.url), V1_NOTICE))
    with readable(Path(file), f"; for that remove {file}"):
        yield {**kwargs, "pretrained_cfg_overlay": {**overlay, "file": file}}


def _from(cfg: PretrainedCfg) -> AbstractContextManager[None]:
    """Return the context that translates errors of the source that the caller chose."""
    if cfg.hf_hub_id and cfg.source != "local-dir":
        return _readable_on_hub(cfg.hf_hub_id)
    return readable(Path(cfg.file)) if cfg.file else nullcontext()


def _checked(namespace: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", namespace):
        raise InputError(f"{NAMESPACE_VARIABLE} must be a user or organisation on the Hub, got {namespace!r}")
    return namespace


@contextmanager
def readable(path: Path, mend: str = "") -> Iterator[None]:
    """Say what is wrong with a file that timm could not read, because timm's error does not name the file.

    Raises:
        InputError: The file cannot be read; its message ends with ``mend``. Errors of other causes pass unchanged.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # a reader may raise anything on a damaged or hostile file
        weights = path / WEIGHTS_FILE if path.is_dir() and (path / WEIGHTS_FILE).is_file() else path
        try:
            refuse_unreadable(weights)
        except InputError as refusal:
            raise InputError(f"{refusal}{mend}") from error
        raise  # the file is readable: the error has another cause


@contextmanager
def _readable_on_hub(repository: str) -> Iterator[None]:
    """Say what is wrong with the weights of a repository, or with their download."""
    with hub_errors(repository, WEIGHTS_FILE):
        try:
            yield
        except (SafetensorError, EOFError, pickle.UnpicklingError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not re.search("weights_only|PytorchStreamReader", str(error)):
                raise
            raise InputError(
                f"Hub repository '{repository}': its weights are damaged, or no weights alone ({reason(error)[:200]}); "
                "name another one or a file"
            ) from error
