"""Download the authors' files by URL, and files of a Hub repository by name. Nothing is downloaded at import.

huggingface_hub reads the Hub's address (``HF_ENDPOINT``), the cache (``HF_HOME``), offline mode (``HF_HUB_OFFLINE``)
and the token (``HF_TOKEN``) from the environment.
"""

from __future__ import annotations

import hashlib
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException, HTTPResponse
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from vovnet.errors import InputError, reason
from vovnet.files import atomic_path, check_symlink
from vovnet.folders.home import user_cache
from vovnet.folders.temporary import remove_leftovers
from vovnet.terminal.streams import say

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
"""Matches ``ORG/NAME``."""

V1_NOTICE = (
    "its authors state no licence that we know of; it was trained on ImageNet "
    "(https://www.image-net.org/download.php), a detector on COCO, too (https://cocodataset.org/#termsofuse), whose "
    "terms are for you to judge"
)
"""Note on the licence of the files of VoVNet.pytorch and maskrcnn-benchmark(-vovnet)."""
V2_NOTICE = (
    "its licence is CC BY-NC 4.0, which forbids commercial use (https://creativecommons.org/licenses/by-nc/4.0/)"
)
"""The licence of the files of vovnet-detectron2."""

_CHUNK = 2**20
_TIMEOUT = 30.0  # seconds without a byte


def fetch(url: str, notice: str = "", *, progress: bool = True) -> Path:
    """Return the path of a file in torch's cache (``TORCH_HOME``), downloading it if it is not there.

    The file is complete or absent, even if the download is interrupted or several processes run it at once. The
    download prints the file's SHA-256 on stderr.

    Args:
        url: The address. Its last part, without the query, is the file's name in the cache.
        notice: Text about the file, printed with the download.
        progress: Show a progress bar on stderr.

    Raises:
        InputError: The address cannot be reached, does not return a file, or the connection breaks.
    """
    import torch

    # Without a home folder torch would write below a folder that is called "~".
    cache = Path(torch.hub.get_dir())
    folder = user_cache() / "torch" / "hub" if cache.parts[0] == "~" else cache
    target = folder / "checkpoints" / PurePosixPath(urlsplit(url).path).name
    if target.exists():
        return target
    remove_leftovers(target.parent)
    with atomic_path(target) as temporary:
        try:
            checksum = _download(url, temporary, progress)
        except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
            raise InputError(
                f"{url} cannot be fetched ({reason(error)}): get the file by other means and put it at '{target}', or "
                "load converted weights (`vovnet convert FILE FOLDER`)"
            ) from error
    say(f"{target}: fetched from {url}, SHA-256 {checksum}" + (f"; {notice}" if notice else ""))
    return target


def _download(url: str, path: Path, progress: bool) -> str:
    """Download a URL to a file and return the file's SHA-256."""
    from huggingface_hub.utils import tqdm

    digest = hashlib.sha256()
    request = urllib.request.Request(url, headers={"User-Agent": "vovnet"})
    with urllib.request.urlopen(request, timeout=_TIMEOUT) as response, path.open("wb") as file:
        expected = _length(response)
        name = PurePosixPath(urlsplit(url).path).name
        bar: Any = tqdm(total=expected, unit="B", unit_scale=True, desc=name, disable=None if progress else True)
        with bar:
            while block := response.read(_CHUNK):
                file.write(block)
                digest.update(block)
                bar.update(len(block))
        if expected is not None and file.tell() != expected:  # urllib takes a closed connection as the end
            raise ConnectionError(f"it broke off after {file.tell()} of {expected} bytes; try again")
    return digest.hexdigest()


def _length(response: HTTPResponse) -> int | None:
    if response.headers.get_content_type() == "text/html":
        raise ConnectionError("it answers with a web page instead of the file; the link may be dead")
    length = response.headers.get("Content-Length")
    return int(length) if length else None


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
