"""The answers of the stand-in Hub: the part of the Hub's protocol that huggingface_hub and timm speak for models."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote, unquote

from hub_store import ATTRIBUTES, Entry, Repository, Store

TOKEN = "hf_stand_in"  # the one that is accepted; its owner may write everywhere
OWNER = "tester"


@dataclass(frozen=True)
class Request:
    """A request. Header names are in lower case; the path is as sent, without the query."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    endpoint: str

    @property
    def token(self) -> str | None:
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """An answer. A body that may be asked for in parts is ``seekable``."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    seekable: bool = False


class RefusedError(Exception):
    """A request that ends in an error; the client tells kinds of errors by the code and the message."""

    def __init__(self, status: int, message: str, code: str = "", **headers: str) -> None:
        super().__init__(message)
        named = {"X-Error-Code": code} if code else {}
        extra = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answer = as_json({"error": message}, status, {"X-Error-Message": message, **named, **extra})


def as_json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


def answer(store: Store, request: Request) -> Answer:
    """Answer a request."""
    try:
        if request.token not in (None, TOKEN):
            raise RefusedError(401, "Invalid credentials in Authorization header")
        for methods, pattern, respond in ROUTES:
            if request.method in methods and (match := pattern.fullmatch(request.path)):
                return respond(store, request, *(unquote(part or "") for part in match.groups()))
        raise RefusedError(404, f"the stand-in does not know {request.method} {request.path}")
    except RefusedError as refusal:
        return refusal.answer


def _find(store: Store, request: Request, name: str) -> Repository:
    """The repository, as far as the asker may know of it: a private one looks like none."""
    repository = store.repositories.get(name)
    if repository is None or (repository.private and not request.token):
        raise RefusedError(404 if request.token else 401, "Repository not found", "RepoNotFound")
    return repository


def _resolve(repository: Repository, revision: str) -> str:
    commit = repository.resolve(revision or "main")
    if commit is None:
        raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


def _need_token(request: Request) -> None:
    if not request.token:
        raise RefusedError(401, "Invalid username or password.")


def _who_am_i(store: Store, request: Request) -> Answer:
    _need_token(request)
    access = {"displayName": "stand-in", "role": "write"}
    auth = {"type": "access_token", "accessToken": access}
    return as_json({"type": "user", "id": "1", "name": OWNER, "fullname": OWNER, "orgs": [], "auth": auth})


def _validate_card(store: Store, request: Request) -> Answer:
    """Two of the Hub's own checks: a card opens with metadata, and a licence is one of its lower-case names."""
    metadata = re.match(r"---\n(.*?)\n---\n", request.json()["content"], re.DOTALL)
    if metadata is None:
        return as_json({"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]})
    licence = re.search(r"^license: *(.*?) *$", metadata[1], re.MULTILINE)
    if licence and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence[1]):
        return as_json({"errors": [{"message": '"license" must be one of the known names'}], "warnings": []}, 400)
    return as_json({"errors": [], "warnings": []})


def _create(store: Store, request: Request) -> Answer:
    _need_token(request)
    asked = request.json()
    name = f"{asked.get('organization') or OWNER}/{asked['name']}"
    url = f"{request.endpoint}/{name}"
    if asked.get("type", "model") != "model":
        raise RefusedError(400, "the stand-in keeps models only")
    if name in store.repositories:
        return as_json({"error": "You already created this model repo", "url": url}, 409)
    store.create(name, {".gitattributes": ATTRIBUTES}, private=asked.get("visibility") == "private")
    return as_json({"url": url, "name": name, "id": "0" * 24})


def _info(store: Store, request: Request, name: str, revision: str) -> Answer:
    repository = _find(store, request, name)
    commit = _resolve(repository, revision)
    described = {"id": name, "modelId": name, "author": name.partition("/")[0], "sha": commit, "tags": []}
    state = {"private": repository.private, "gated": "manual" if repository.gated else False, "disabled": False}
    siblings = [{"rfilename": entry.path} for entry in repository.entries(commit)]
    return as_json({**described, **state, "downloads": 0, "likes": 0, "siblings": siblings})


def _refs(store: Store, request: Request, name: str) -> Answer:
    repository = _find(store, request, name)

    def listed(kind: str, names: Mapping[str, str]) -> list[dict[str, str]]:
        return [{"name": key, "ref": f"refs/{kind}/{key}", "targetCommit": commit} for key, commit in names.items()]

    heads, tags = listed("heads", repository.branches), listed("tags", repository.tags)
    return as_json({"branches": heads, "tags": tags, "converts": []})


def _tag(store: Store, request: Request, name: str, revision: str) -> Answer:
    _need_token(request)
    repository = _find(store, request, name)
    tag = request.json()["tag"]
    if tag in repository.tags:
        raise RefusedError(409, f"Tag {tag} already exists")
    repository.tags[tag] = _resolve(repository, revision)
    return as_json({})


def _described(entry: Entry) -> dict[str, object]:
    described: dict[str, object] = {"type": "file", "path": entry.path, "size": len(entry.content), "oid": entry.git_id}
    if entry.is_large:
        described["lfs"] = {"oid": entry.sha256, "size": len(entry.content), "pointerSize": 134}
    return described


def _tree(store: Store, request: Request, name: str, revision: str, folder: str) -> Answer:
    """Always recursive: the files, without entries for their folders."""
    repository = _find(store, request, name)
    below = folder.strip("/") + "/" if folder.strip("/") else ""
    entries = repository.entries(_resolve(repository, revision))
    return as_json([_described(entry) for entry in entries if entry.path.startswith(below)])


def _paths_info(store: Store, request: Request, name: str, revision: str) -> Answer:
    repository = _find(store, request, name)
    is_form = request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
    wanted = parse_qs(request.body.decode()).get("paths", []) if is_form else request.json()["paths"]
    entries = repository.entries(_resolve(repository, revision))
    return as_json([_described(entry) for entry in entries if entry.path in wanted])


def _preupload(store: Store, request: Request, name: str, revision: str) -> Answer:
    """Says of each file whether it travels inside the commit or before it, and what is there already."""
    _need_token(request)
    repository = _find(store, request, name)
    present = {entry.path: entry.etag for entry in repository.entries(_resolve(repository, revision))}
    files = [
        {
            "path": file["path"],
            "uploadMode": "lfs" if Entry(file["path"], b"").is_large else "regular",
            "shouldIgnore": False,
            "oid": present.get(file["path"]),
        }
        for file in request.json()["files"]
    ]
    return as_json({"files": files})


def _lfs_batch(store: Store, request: Request, name: str) -> Answer:
    """Says where each large file goes; one without ``actions`` is there already."""
    _need_token(request)
    _find(store, request, name)
    objects: list[dict[str, object]] = []
    for wanted in request.json()["objects"]:
        upload = {"href": f"{request.endpoint}/_objects/{wanted['oid']}", "header": {}}
        missing = {} if wanted["oid"] in store.objects else {"actions": {"upload": upload}}
        objects.append({"oid": wanted["oid"], "size": wanted["size"], **missing})
    return as_json({"transfer": "basic", "objects": objects}, 200, {"Content-Type": "application/vnd.git-lfs+json"})


def _lfs_object(store: Store, request: Request, sha256: str) -> Answer:
    if hashlib.sha256(request.body).hexdigest() != sha256:
        raise RefusedError(400, "the content does not have the SHA-256 that was announced")
    store.objects[sha256] = request.body
    return Answer()


def _commit(store: Store, request: Request, name: str, branch: str) -> Answer:
    """A JSON object a line: a header, then files to add and remove."""
    _need_token(request)
    repository = _find(store, request, name)
    if branch not in repository.branches:
        raise RefusedError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
    changes: dict[str, bytes | None] = {}
    for line in request.body.splitlines():
        item = json.loads(line)
        key, value = item["key"], item["value"]
        if key == "header" and value.get("parentCommit", repository.branches[branch]) != repository.branches[branch]:
            raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
        if key == "file":
            changes[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            if value["oid"] not in store.objects:
                raise RefusedError(400, f"LFS object {value['oid']} was not uploaded")
            changes[value["path"]] = store.objects[value["oid"]]
        elif key == "deletedFile":
            changes[value["path"]] = None
        elif key == "deletedFolder":
            tree = repository.commits[repository.branches[branch]]
            changes.update({path: None for path in tree if path.startswith(value["path"].rstrip("/") + "/")})
    commit = repository.commit(branch, changes)
    url = f"{request.endpoint}/{name}/commit/{commit}"
    return as_json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": "", "pullRequestUrl": None})


def _file(store: Store, request: Request, name: str, revision: str, path: str) -> Answer:
    repository = _find(store, request, name)
    if repository.gated and request.token is None:
        raise RefusedError(401, f"Access to model {name} is restricted.", "GatedRepo")
    commit = _resolve(repository, revision)
    content = repository.commits[commit].get(path)
    if content is None:
        raise RefusedError(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit)
    entry = Entry(path, content)
    headers = {"ETag": f'"{entry.etag}"', "X-Repo-Commit": commit, "Content-Type": "application/octet-stream"}
    if entry.is_large:
        headers |= {"X-Linked-ETag": f'"{entry.sha256}"', "X-Linked-Size": str(len(content))}
    return Answer(200, content, headers, seekable=True)


def _plain_file(store: Store, request: Request, name: str) -> Answer:
    if name not in store.files:
        raise RefusedError(404, "no such file")
    return Answer(200, store.files[name], {"Content-Type": "application/octet-stream"}, seekable=True)


def plain_file_path(name: str) -> str:
    return f"/files/{quote(name)}"


_NAME = "([^/]+/[^/]+)"
_REVISION = "([^/]+)"
_MODEL = f"/api/models/{_NAME}"

ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Answer]]] = [
    (methods, re.compile(pattern), respond)
    for methods, pattern, respond in (
        ("GET", "/api/whoami-v2", _who_am_i),
        ("POST", "/api/validate-yaml", _validate_card),
        ("POST", "/api/repos/create", _create),
        ("GET HEAD", f"{_MODEL}/refs", _refs),
        ("GET HEAD", f"{_MODEL}(?:/revision/{_REVISION})?", _info),
        ("POST", f"{_MODEL}/tag/{_REVISION}", _tag),
        ("GET", f"{_MODEL}/tree/{_REVISION}((?:/.*)?)", _tree),
        ("POST", f"{_MODEL}/paths-info/{_REVISION}", _paths_info),
        ("POST", f"{_MODEL}/preupload/{_REVISION}", _preupload),
        ("POST", f"{_MODEL}/commit/{_REVISION}", _commit),
        ("POST", rf"/{_NAME}\.git/info/lfs/objects/batch", _lfs_batch),
        ("PUT", "/_objects/([0-9a-f]{64})", _lfs_object),
        ("GET HEAD", f"/{_NAME}/resolve/{_REVISION}/(.+)", _file),
        ("GET HEAD", "/files/([^/]+)", _plain_file),
    )
]
