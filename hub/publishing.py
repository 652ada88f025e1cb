"""Upload a folder to the Hugging Face Hub: a fixed list of files in one commit, or a report of what would be sent."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, ModelCard, errors
from huggingface_hub.utils import get_session, hf_raise_for_status, validate_repo_id

from vovnet.checkpoints.hub import HUB_NAME
from vovnet.checkpoints.places import local_folder
from vovnet.checkpoints.sources import WITHOUT_LICENCE, hub_licence, licence_notice
from vovnet.errors import InputError, reason
from vovnet.files import CONFIG_FILE, MODEL_FILES, WEIGHTS_FILE, check_symlink, read_json
from vovnet.folders.home import expand_home
from vovnet.folders.temporary import scratch_folder
from vovnet.hub.manifest import (
    CARD_FILE,
    EXAMPLE_FILE,
    MANIFEST_FILE,
    PUBLISHED_FILES,
    SUMS_FILE,
    PublishedFile,
    check_sums,
    read_manifest,
)
from vovnet.hub.release import Description, StoredAs, check_architecture, describe

NONCOMMERCIAL = "cc-by-nc-4.0"


@dataclass(frozen=True)
class Publication:
    """The result of :func:`publish`; ``str()`` gives the text for the user."""

    repository: str
    files: tuple[tuple[str, int], ...]
    """Names and sizes in bytes."""
    notes: tuple[str, ...]
    commit: str | None = None
    """The URL of the commit; None if nothing was uploaded."""

    def __str__(self) -> str:
        lines = [f"{size:>13,}  {name}" for name, size in self.files]
        lines += [f"note: {note}" for note in self.notes]
        if self.commit is None:
            return "\n".join([f"would upload to {self.repository}:", *lines, "nothing was uploaded; --yes does it"])
        return "\n".join([f"uploaded to {self.repository} ({self.commit}):", *lines])


def publish(
    folder: str | os.PathLike[str],
    repository: str,
    *,
    yes: bool = False,
    private: bool = True,
    license: str | None = None,
    train_data: str | None = None,
    eval_data: str | None = None,
    architecture: StoredAs = "timm",
    example: str | os.PathLike[str] | None = None,
    example_credit: str | None = None,
) -> Publication:
    """Upload a folder's model to the Hugging Face Hub, with a model card, checksums and recorded outputs.

    Only ``README.md``, ``config.json``, ``model.safetensors``, ``manifest.json`` and ``SHA256SUMS`` are uploaded, and
    ``example.jpg`` if an image is given, in one commit. Without an image, the commit removes the ``example.jpg`` of an
    earlier publication. Other files of the folder stay on this machine.

    Args:
        folder: A folder of a training run, of :func:`vovnet.hub.convert_checkpoint`, or in timm's form.
        repository: ``ORG/NAME``; created if it does not exist.
        yes: False uploads nothing and needs no network; the result says what would be uploaded.
        private: Make a new repository private. An existing repository keeps its visibility.
        license: A license identifier of the Hub, such as ``apache-2.0``; ``other`` for weights whose authors state
            none. Required for converted weights.
        train_data: The name that the card gives to the training data.
        eval_data: The name that the card gives to the data that the metrics were measured on.
        architecture: As in :func:`vovnet.hub.convert_checkpoint`.
        example: An image that you may publish. The card shows it with the detector's detections. By default there is
            none, because images of a training may be private.
        example_credit: Author and licence of that image, for the line below it.

    Returns:
        Files, sizes, notes and the commit; ``str()`` gives the text for the user.

    Raises:
        InputError: The folder cannot be loaded or was changed since its conversion, its configuration holds a local
            path, a license is missing or contradicts the source's, the example cannot be read, or the Hub refuses.
    """
    folder = local_folder(folder)
    if example_credit is not None and example is None:
        raise InputError("--example-credit: expected together with --example IMAGE")
    image = None if example is None else expand_home(example)
    description = Description(repository, license, train_data, eval_data, architecture, image, example_credit)
    _check_name(repository)
    check_architecture(architecture)
    for name in MODEL_FILES:
        check_symlink(folder, name)
        if not (folder / name).is_file():
            raise InputError(f"{folder} has no {name}; expected a folder of `vovnet train`, `vovnet convert` or timm")
    source = _source(folder)
    notes = _licence_notes(source, _stated_licence(folder, source), license)
    with scratch_folder() as staged:
        notes += describe(folder, staged, source, description)
        places = {name: folder / name if name == WEIGHTS_FILE else staged / name for name in PUBLISHED_FILES}
        if not (staged / CONFIG_FILE).is_file():
            places[CONFIG_FILE] = folder / CONFIG_FILE
        if image is not None:
            places[EXAMPLE_FILE] = staged / EXAMPLE_FILE
        files = tuple((name, path.stat().st_size) for name, path in places.items())
        visibility = "private" if private else "public"
        if not yes:
            notes.append(f"the repository would be {visibility} if it does not exist yet")
            return Publication(repository, files, tuple(notes))
        api = HfApi(library_name="vovnet")
        with _upload_errors(repository):
            existed, commit, removed = _upload(api, repository, places, private)
        notes += [f"{name} of an earlier publication was removed" for name in removed]
        notes += _look_back(api, repository, existed, set(places))
        return Publication(repository, files, tuple(notes), commit)


def _check_name(repository: str) -> None:
    try:
        validate_repo_id(repository)
        valid = HUB_NAME.fullmatch(repository) is not None
    except errors.HFValidationError:
        valid = False
    if not valid:
        raise InputError(f"repository: expected ORG/NAME on the Hub, got '{repository}'")


def _source(folder: Path) -> PublishedFile | None:
    """Return the file that a folder's weights were converted from, after checking that they were not changed since."""
    if not (folder / MANIFEST_FILE).is_file():
        return None
    check_sums(folder, (CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE))
    return read_manifest(folder).source


def _stated_licence(folder: Path, source: PublishedFile | None) -> str | None:
    """Return the licence that the folder states for its weights."""
    if source is not None:
        return source.license
    cfg = read_json(folder / CONFIG_FILE).get("pretrained_cfg")
    return cfg.get("license") if isinstance(cfg, dict) else None


def _licence_notes(source: PublishedFile | None, stated: str | None, license: str | None) -> list[str]:
    if license is None:
        if source is not None:
            raise InputError(
                f"--license: these weights were converted from '{source.file}', which others published; say under what "
                f"licence you may pass them on (of this file: --license {hub_licence(source.license)})"
            )
        return ["no --license was given: the card says that you state none, so nobody may use the weights"]
    notes = []
    if stated == NONCOMMERCIAL and license != NONCOMMERCIAL:
        what = f"'{source.file}' is" if source else f"{CONFIG_FILE} says that the weights are"
        raise InputError(f"--license {license}: {what} under CC BY-NC 4.0; give --license {NONCOMMERCIAL}")
    if license == "not-stated":  # which the folder's config.json may say, and the Hub refuses
        raise InputError(f"--license {license}: the Hub has no such identifier; give --license {hub_licence(license)}")
    if "-nc" in license:
        notes.append(f"warning: {license} forbids commercial use of the weights")
    if source is not None and stated in WITHOUT_LICENCE:
        notes.append(
            f"warning: '{source.file}': {licence_notice(source.license)}; no licence is known, so you have to find out "
            "whether you may pass it on"
        )
    return notes


def check_card(card: ModelCard, endpoint: str) -> None:
    """Ask a Hub whether it accepts a model card.

    ``card.validate`` sends the card to huggingface.co before huggingface_hub 2.3, whatever ``HF_ENDPOINT`` says.

    Raises:
        ValueError: the card violates the Hub's rules.
    """
    body = {"repoType": "model", "content": str(card)}
    answer = get_session().post(f"{endpoint}/api/validate-yaml", json=body, headers={"Accept": "text/plain"})
    if answer.status_code == 400:
        raise ValueError(answer.text)
    hf_raise_for_status(answer)


def _upload(api: HfApi, repository: str, places: dict[str, Path], private: bool) -> tuple[bool, str, tuple[str, ...]]:
    """Create the repository if it does not exist, and add all files in one commit, so that nobody sees half of them.

    Returns:
        True if the repository existed, the URL of the commit, and the files of an earlier publication that it removed.
    """
    existed = api.repo_exists(repository)
    check_card(ModelCard.load(places[CARD_FILE]), api.endpoint)
    if not existed:
        api.create_repo(repository, private=private, exist_ok=True)
    removed = (EXAMPLE_FILE,) if existed and EXAMPLE_FILE not in places and _has_example(api, repository) else ()
    info: Any = api.create_commit(
        repository,
        operations=[
            *(CommitOperationAdd(name, path) for name, path in places.items()),
            *(CommitOperationDelete(name) for name in removed),
        ],
        commit_message=f"Publish weights with vovnet ({len(places)} files)",
    )
    return existed, str(info.commit_url), removed


def _has_example(api: HfApi, repository: str) -> bool:
    """Return True if the repository has the example of an earlier publication, which its checksums list."""
    if not {EXAMPLE_FILE, SUMS_FILE} <= {entry.rfilename for entry in api.model_info(repository).siblings or ()}:
        return False
    lines = Path(api.hf_hub_download(repository, SUMS_FILE)).read_text(encoding="utf-8", errors="replace").splitlines()
    return any(line.endswith(f" {EXAMPLE_FILE}") for line in lines)


def _look_back(api: HfApi, repository: str, existed: bool, names: set[str]) -> list[str]:
    """Return notes about the repository after the upload: its visibility, and files that are not ours."""
    try:
        after = api.model_info(repository)
    except (errors.HTTPError, ConnectionError, TimeoutError) as error:
        return [f"the Hub took the files, but does not answer what else is there ({reason(error)})"]
    others = sorted({entry.rfilename for entry in after.siblings or ()} - {*names, ".gitattributes"})
    seen = "private" if after.private else "public"
    said = [f"the repository {'was there and' if existed else 'is new and'} is {seen}"]
    if others:
        said.append(f"left alone, though not ours: {', '.join(others[:10])}{' …' if len(others) > 10 else ''}")
    return said


@contextmanager
def _upload_errors(repository: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except ValueError as error:  # the card violates the Hub's rules
        raise InputError(f"{repository}: the Hub refuses the model card ({' '.join(str(error).split())})") from error
    except (errors.HTTPError, OSError, RuntimeError) as error:
        # The client wraps errors of single files in a RuntimeError.
        cause = error.__cause__ if isinstance(error, RuntimeError) and error.__cause__ else error
        status = getattr(getattr(cause, "response", None), "status_code", None)
        mend = (
            "check HF_TOKEN or `hf auth login`, and that you may write there" if status in (401, 403) else "try again"
        )
        raise InputError(
            f"{repository}: the upload failed and no file of it is on the Hub ({reason(cause)}); {mend}"
        ) from error
