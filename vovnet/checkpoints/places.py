"""Decide whether a name of weights is a folder on this machine or a repository on the Hub. A path is a path first."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import TypeGuard

from vovnet.checkpoints.hub import HUB_NAME, hub_files
from vovnet.errors import InputError, did_you_mean
from vovnet.files import MODEL_FILES
from vovnet.folders.home import expand_home

HUB_PREFIX, FOLDER_PREFIX = "hf-hub:", "local-dir:"
"""What timm, and every entrance here, takes in front of a name that shall be a repository, or a folder."""
TORCHVISION_PREFIX = "torchvision:"
"""What stands in front of a name of torchvision's detectors (detection/checkpoints/torchvision_detectors.py)."""

_FILE_ENDING = re.compile(r"\.(pth|pt|zip|safetensors|json|onnx|xml|pt2|torchscript)$", re.IGNORECASE)
_CONVERTED = re.compile(r"\.(pth|pt|zip|pkl|bin|ckpt)$", re.IGNORECASE)
_EXPORTED = re.compile(r"\.(onnx|xml|pt2|torchscript)$", re.IGNORECASE)
_LOCAL_START = (".", "/", "~")
_WITHOUT_PYRAMID = ("ssd*",)  # the detectors of torchvision that have no counterpart here
_MOST_ENTRIES = 1000  # of a folder, to look for a similar name


def locate(name_or_folder: str | os.PathLike[str]) -> Path | str:
    """Return the existing folder that a name means, or the name ``ORG/NAME`` or ``ORG/NAME@REVISION`` on the Hub.

    Nothing is downloaded. A name that looks like a path never means the Hub: see :func:`is_path`.

    Args:
        name_or_folder: A folder, ``ORG/NAME[@REVISION]``, ``hf-hub:ORG/NAME[@REVISION]`` or ``local-dir:FOLDER``.

    Raises:
        InputError: There is no such folder, it is a file, or the name is malformed.
    """
    given = os.fspath(name_or_folder)
    if given.startswith(HUB_PREFIX):
        name = given.removeprefix(HUB_PREFIX)
        if not HUB_NAME.fullmatch(name.partition("@")[0]):
            raise InputError(f"'{given}': expected {HUB_PREFIX}ORG/NAME or {HUB_PREFIX}ORG/NAME@REVISION")
        return name
    text = given.removeprefix(FOLDER_PREFIX)
    if not text:
        raise InputError(f"expected a folder, or ORG/NAME on the Hub, got '{given}'")
    if os.path.lexists(folder := expand_home(text)):
        return _existing(folder)
    name, _, revision = text.partition("@")
    if revision and os.path.isdir(expand_home(name)):
        raise InputError(
            f"'{given}' names revision '{revision}', but '{name}' is a local path; revisions exist only on the Hub"
        )
    if given == text and not isinstance(name_or_folder, os.PathLike) and not is_path(text):
        if HUB_NAME.fullmatch(name):
            return text
        raise InputError(f"no folder '{text}' here, and it is not a Hub name ORG/NAME; {_near(folder)}")
    raise InputError(f"no folder '{text}' here{_ways_out(name)}; {_near(folder)}")


def is_torchvision(name: object) -> TypeGuard[str]:
    """Return True if a name of weights is one of torchvision's: ``torchvision:…``."""
    return isinstance(name, str) and name.startswith(TORCHVISION_PREFIX)


def torchvision_hint(name: str) -> str:
    """Return a hint if a name is that of one of torchvision's detectors, or almost, without its prefix; else ``""``."""
    from torchvision.models import detection, list_models

    known = [f"{TORCHVISION_PREFIX}{one}" for one in list_models(module=detection, exclude=_WITHOUT_PYRAMID)]
    return did_you_mean(f"{TORCHVISION_PREFIX}{name.partition('.')[0]}", known, cutoff=0.95)


def is_path(text: str) -> bool:
    """Return True if a text, which may end in ``@REVISION``, can only mean a file or folder, also one that is absent.

    These are texts that begin with ``.``, ``/`` or ``~``, end like a file of weights, or contain a backslash or more
    than one slash; and ``runs/mine`` where a folder ``runs`` exists.
    """
    name = text.partition("@")[0]
    if text.startswith(_LOCAL_START) or name.endswith("/") or "\\" in text or name.count("/") > 1:
        return True
    if _FILE_ENDING.search(name) or _FILE_ENDING.search(text):
        return True
    owner, slash, _ = name.partition("/")
    return bool(slash) and os.path.isdir(owner)


def model_folder(name_or_folder: str | os.PathLike[str], filenames: Sequence[str], revision: str | None = None) -> Path:
    """Return the local folder of a path or Hub name; files of a repository are downloaded if they are not in the cache.

    Args:
        name_or_folder: As in :func:`locate`.
        filenames: The files to get from a repository. Whether a local folder has them is not checked.
        revision: Branch, tag or commit of the repository.

    Raises:
        InputError: There is no such folder, a local folder was given with a revision, or the files cannot be fetched.
    """
    place = locate(name_or_folder)
    if isinstance(place, str):
        return hub_files(place, filenames, revision)
    if revision is not None:
        raise InputError(
            f"revision '{revision}' was given, but '{place}' is a local path; revisions exist only on the Hub"
        )
    return place


def local_folder(folder: str | os.PathLike[str]) -> Path:
    """Return a folder of this machine, for what cannot be done with a repository.

    Raises:
        InputError: There is no such folder.
    """
    place = locate(folder)
    if isinstance(place, str):
        given = os.fspath(folder)
        raise InputError(f"no folder '{given}' here; expected a folder on this machine; {_near(Path(given))}")
    return place


def _existing(path: Path) -> Path:
    """Return a folder; say of a file, or of a link that leads nowhere, what was expected in its place."""
    if path.is_dir():
        return path
    what = "file" if path.exists() else "link that leads nowhere"
    mend = f"expected the folder that holds {' and '.join(MODEL_FILES)}"
    if path.name in MODEL_FILES:
        mend += f", such as '{path.parent}'"
    elif _EXPORTED.search(path.name):
        mend += " (`vovnet predict` and `vovnet evaluate` run exported files)"
    elif _CONVERTED.search(path.name):
        mend += f" (`vovnet convert '{path}' FOLDER` makes one of a published file)"
    raise InputError(f"'{path}' is a {what}; {mend}")


def _near(path: Path) -> str:
    """Return what to check: an entry with a similar name in the deepest folder of the path that exists, if any."""
    missing = path
    while missing.parent != missing and not os.path.lexists(missing.parent):
        missing = missing.parent
    names: list[str] = []
    with contextlib.suppress(OSError), os.scandir(missing.parent) as entries:
        names = [entry.name for entry in islice(entries, _MOST_ENTRIES) if not entry.name.startswith(".")]
    return did_you_mean(str(missing), [str(missing.parent / name) for name in names], "check the path")


def _ways_out(name: str) -> str:
    """Return how to reach what the user may have meant."""
    ways = ""
    if _CONVERTED.search(name):
        ways += "; `vovnet convert FILE FOLDER` makes a folder of a published file"
    if HUB_NAME.fullmatch(name):
        ways += f"; a repository of that name on the Hub is '{HUB_PREFIX}{name}'"
    return ways
