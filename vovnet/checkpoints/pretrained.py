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

from vovnet.checkpoints.archives import is_archive
from vovnet.checkpoints.download import fetch_source, unpack_source
from vovnet.checkpoints.hub import hub_errors
from vovnet.checkpoints.pickled import refuse_unreadable
from vovnet.checkpoints.sources import other_sources, source_named, source_of_file
from vovnet.errors import InputError, reason
from vovnet.files import WEIGHTS_FILE
from vovnet.terminal.streams import say_once

NAMESPACE_VARIABLE = "VOVNET_HUB_NAMESPACE"
"""Environment variable with a user or organisation on the Hub whose repositories hold the weights
(``vovnet39.osmr_in1k``). There is no default: without it the publishers' files are used, and nobody can register a name
that we would trust."""


@contextmanager
def pretrained_source(variant: str, kwargs: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield arguments for ``build_model_with_cfg`` that name the weights, and turn errors of loading into InputErrors.

    A file, folder, repository or URL of the caller is used as it is. Otherwise the weights come from the Hub namespace
    in ``VOVNET_HUB_NAMESPACE`` if it is set, or else from the publisher's file. If one source fails, no other is tried:
    the error names the others. The source stands in the model's ``pretrained_cfg``.

    Args:
        variant: timm's name of the architecture.
        kwargs: The caller's arguments: ``pretrained_cfg``, ``pretrained_cfg_overlay`` and others.

    Raises:
        InputError: The namespace is malformed, or the weights cannot be fetched or read.
    """
    cfg = resolve_pretrained_cfg(variant, kwargs.get("pretrained_cfg"), kwargs.get("pretrained_cfg_overlay"))
    overlay = dict(kwargs.get("pretrained_cfg_overlay") or {})
    source = source_named(f"{variant}.{cfg.tag}")
    if source is None or cfg.url != source.url or cfg.source or cfg.file or cfg.state_dict or cfg.hf_hub_id:
        if cfg.file and cfg.source != "local-dir":
            overlay["file"] = str(unpacked(Path(cfg.file)))
        with _from(cfg):
            yield {**kwargs, "pretrained_cfg_overlay": overlay} if overlay else dict(kwargs)
        return
    if namespace := hub_namespace():
        repository = f"{namespace}/{source.name}"
        with _other_sources_named(source.name), _readable_on_hub(repository):
            # Without the address, pretrained_cfg names the source that is used.
            yield {**kwargs, "pretrained_cfg_overlay": {**overlay, "hf_hub_id": repository, "url": ""}}
        say_once(repository, f"{source.name}: from the Hub repository {repository}")
        return
    path = fetch_source(source)
    with readable(path, f"; for that remove {path}"):
        yield {**kwargs, "pretrained_cfg_overlay": {**overlay, "file": str(path)}}


def unpacked(file: Path) -> Path:
    """Return a file of weights itself, or for a published zip archive the path of its file in torch's cache.

    Raises:
        InputError: The archive is damaged, or none that is known by its checksum as a published one of these networks.
    """
    if not is_archive(file):
        return file
    if source := source_of_file(file.name):
        return unpack_source(file, source)
    raise InputError(f"{file}: a zip archive, and none that is published of these networks; name the .pth file in it")


@contextmanager
def _other_sources_named(name: str) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        raise InputError(f"{error}; or {other_sources(name, on_the_hub=True)}") from error


def _from(cfg: PretrainedCfg) -> AbstractContextManager[None]:
    """Return the context that translates errors of the source that the caller chose."""
    if cfg.hf_hub_id and cfg.source != "local-dir":
        return _readable_on_hub(cfg.hf_hub_id)
    return readable(Path(cfg.file)) if cfg.file else nullcontext()


def hub_namespace() -> str | None:
    """Return the Hub namespace in the environment, or None.

    Raises:
        InputError: It is malformed.
    """
    namespace = os.environ.get(NAMESPACE_VARIABLE, "")
    if namespace and not re.fullmatch(r"[A-Za-z0-9][\w.-]*", namespace):
        raise InputError(f"{NAMESPACE_VARIABLE} must be a user or organisation on the Hub, got {namespace!r}")
    return namespace or None


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
