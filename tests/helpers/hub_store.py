"""The data of the stand-in Hub: model repositories with their commits, branches and tags, in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

# What the Hub writes into a new repository; here it also decides what counts as a large file.
ATTRIBUTES = b"".join(
    b"*%s filter=lfs diff=lfs merge=lfs -text\n" % ending
    for ending in (b".bin", b".ckpt", b".npz", b".onnx", b".pkl", b".pt", b".pth", b".safetensors")
)


@dataclass(frozen=True)
class Entry:
    """A file in a commit."""

    path: str
    content: bytes

    @property
    def is_large(self) -> bool:
        """Return True if the file is stored and named as a git-lfs object."""
        return any(self.path.endswith(line.split()[0][1:].decode()) for line in ATTRIBUTES.splitlines())

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_id(self) -> str:
        """The SHA-1 that git gives the content."""
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_large else self.git_id


@dataclass
class Repository:
    """A model repository; its commits are whole trees, from path to content."""

    name: str
    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a commit's own name means."""
        commit = revision if revision in self.commits else None
        return self.branches.get(revision) or self.tags.get(revision) or commit

    def entries(self, commit: str) -> list[Entry]:
        return [Entry(path, content) for path, content in sorted(self.commits[commit].items())]

    def commit(self, branch: str, changes: Mapping[str, bytes | None]) -> str:
        """Put a tree with these files changed (None: removed) on a branch, which is made if need be."""
        parent = self.branches.get(branch) or self.branches.get("main")
        tree = {**(self.commits[parent] if parent else {}), **changes}
        # Commits differ even where their trees are equal.
        commit = hashlib.sha1(f"{self.name} {len(self.commits)} {parent} {sorted(tree)}".encode()).hexdigest()
        self.commits[commit] = {path: content for path, content in tree.items() if content is not None}
        self.branches[branch] = commit
        return commit


class Store:
    """Everything that the stand-in Hub knows."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        """Large files by their SHA-256, uploaded before the commit that names them."""
        self.files: dict[str, bytes] = {}
        """Plain files that are no part of a repository."""

    def create(self, name: str, files: Mapping[str, bytes], *, private: bool = False, gated: bool = False) -> str:
        """A repository whose branch ``main`` holds the files; returns the commit."""
        repository = Repository(name, private=private, gated=gated)
        self.repositories[name] = repository
        return repository.commit("main", files)
