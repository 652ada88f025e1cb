"""Files of a repository on the Hugging Face Hub, by name. Nothing is downloaded at import.

huggingface_hub reads the Hub's address (``HF_ENDPOINT``), the cache (``HF_HOME``), offline mode (``HF_HUB_OFFLINE``)
and the token (``HF_TOKEN``) from the environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vovnet.errors import InputError, reason
from vovnet.files import check_symlink

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""Matches ``ORG/NAME``."""


def hub_files(name: str, filenames: Sequence[str], revision: str | None = None) -> Path:
    """Return a local folder with files of a Hub repository, all of one commit, from the cache or the Hub.

    Args:
        name: ``ORG/NAME`` or ``ORG/NAME@REVISION``.
        filenames: The files to get; no other file is downloaded.
        revision: Branch, tag or commit.

    Raises:
        InputError: The name is malformed, the repository or a file does not exist or is not accessible, or the Hub
            cannot be reached and the files are not in the cache.
    """
    repository, _, pinned = name.partition("@")
    if not HUB_NAME.fullmatch(repository):
        raise InputError(f"'{name}' is neither a folder here nor a Hub name ORG/NAME; check the path")
    if pinned and revision is not None and revision != pinned:
        raise InputError(f"'{name}' names revision '{pinned}', but revision '{revision}' was given; give one of them")
    from huggingface_hub import hf_hub_download

    wanted = revision or pinned or None
    commit, folder = wanted, Path()
    for filename in filenames:
        try:
            with hub_errors(repository, filename, wanted):
                folder = Path(hf_hub_download(repository, filename, revision=commit)).parent
        except InputError:
            raise
        except ValueError as error:  # for example a commit whose name leads out of the cache
            raise InputError(f"Hub repository '{repository}': the answer is refused ({reason(error)})") from error
        check_symlink(folder, filename)
        commit = folder.name  # the other files are of the same commit, even if somebody pushes meanwhile
    return folder


@contextmanager
def hub_errors(repository: str, filename: str, revision: str | None = None) -> Iterator[None]:
    """Turn huggingface_hub's errors about a file into an :class:`~vovnet.errors.InputError`."""
    from huggingface_hub import errors

    asked = f"Hub repository '{repository}'" + (f" at revision '{revision}'" if revision else "")
    otherwise = "or download its files elsewhere and give their folder"
    try:
        yield
    except errors.GatedRepoError as error:
        raise InputError(f"{asked} is gated: accept its terms, `hf auth login`, {otherwise}") from error
    except errors.RepositoryNotFoundError as error:
        it = f"it or its revision '{revision}'" if revision else "it"
        raise InputError(
            f"no folder '{repository}' here and no such repository on the Hub (or a private one, or a mirror in "
            f"HF_ENDPOINT without {it}): check the name, `hf auth login`, {otherwise}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"Hub repository '{repository}' has no revision '{revision}'; check its name") from error
    except errors.RemoteEntryNotFoundError as error:
        raise InputError(
            f"{asked} has no {filename}: it holds something else than what was asked for, or a mirror in HF_ENDPOINT "
            f"lacks the file; check the name, ask the Hub itself, {otherwise}"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.HfHubHTTPError, errors.OfflineModeIsEnabled) as error:
        raise _out_of_reach(asked, repository, filename, error) from error
    except errors.HFValidationError as error:
        raise InputError(f"'{repository}' is not a Hub name: {reason(error)}") from error
    except Exception as error:
        if not _is_connection_error(error):
            raise
        raise _out_of_reach(asked, repository, filename, error) from error


def _is_connection_error(error: BaseException) -> bool:
    """Return True if the HTTP client says that a connection failed or broke off."""
    from huggingface_hub.errors import HTTPError

    return isinstance(error, HTTPError | ConnectionError | TimeoutError)


def _out_of_reach(asked: str, repository: str, filename: str, error: BaseException) -> InputError:
    from huggingface_hub import constants

    cause: Any = error.__cause__ or error
    return InputError(
        f"{filename} of {asked} cannot be reached and is not in the cache ({reason(cause)}): connect (or unset "
        "HF_HUB_OFFLINE), name a mirror in HF_ENDPOINT, download the files elsewhere and give their folder, or copy "
        f"another machine's cache folder models--{repository.replace('/', '--')} into '{constants.HF_HUB_CACHE}'"
    )
