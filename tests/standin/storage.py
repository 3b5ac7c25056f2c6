"""What the stand-in hub keeps, on disk: blobs by sha256, repositories with commits, branches and tags."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

LFS_FROM = 1024  # bytes; larger files go to LFS unless a commit says otherwise


@dataclass(frozen=True)
class Entry:
    """A file in a commit. `oid` is its sha256; outside LFS the hub's ETag is the git blob id."""

    oid: str
    size: int
    lfs: bool
    blob_id: str


@dataclass(frozen=True)
class Commit:
    """A snapshot of all files."""

    sha: str
    parent: str | None
    summary: str
    files: dict[str, Entry]


class ConflictError(Exception):
    """The parent that a commit names is not the head of its branch."""


@dataclass
class Repository:
    """One repository; `readers` see it when private, `granted` when gated."""

    id: str
    storage: Storage
    private: bool = False
    gated: bool = False
    readers: set[str] = field(default_factory=set)
    writers: set[str] = field(default_factory=set)  # besides its owner
    granted: set[str] = field(default_factory=set)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)
    uploaded: set[str] = field(default_factory=set)  # LFS objects, by sha256
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)  # of uploads that are not complete

    def commit(
        self,
        changes: Mapping[str, bytes | None],
        *,
        branch: str = "main",
        parent: str | None = None,
        summary: str = "change",
        lfs: Mapping[str, bool] | None = None,
    ) -> str:
        """Add, replace or (None) delete files in one commit; returns its sha. Raises ConflictError."""
        entries = {
            path: None if data is None else self.storage.entry(data, (lfs or {}).get(path))
            for path, data in changes.items()
        }
        return self.commit_entries(entries, branch=branch, parent=parent, summary=summary)

    def commit_entries(
        self, changes: Mapping[str, Entry | None], *, branch: str, parent: str | None, summary: str
    ) -> str:
        """The same for blobs that are stored already."""
        with self.storage.lock:
            head = self.branches.get(branch)
            if parent is not None and parent != head:
                raise ConflictError(head or "")
            files = dict(self.commits[head].files) if head else {}
            for path, entry in changes.items():
                if entry is None:
                    files.pop(path, None)
                else:
                    files[path] = entry
                    if entry.lfs:
                        self.uploaded.add(entry.oid)
            record = {"parent": head, "summary": summary, "files": {p: asdict(e) for p, e in sorted(files.items())}}
            text = json.dumps(record, sort_keys=True)
            sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()
            folder = self.storage.root / "repositories" / self.id
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{sha}.json").write_text(text)
            self.commits[sha] = Commit(sha, head, summary, files)
            self.branches[branch] = sha
            return sha

    def copy(self, name: str) -> Repository:
        """Another repository with the same history."""
        with self.storage.lock:
            other = self.storage.create(name, private=self.private, gated=self.gated)
            other.readers, other.writers = set(self.readers), set(self.writers)
            other.branches, other.tags, other.commits = dict(self.branches), dict(self.tags), dict(self.commits)
            other.uploaded = set(self.uploaded)
            return other

    def contents(self, revision: str = "main") -> dict[str, bytes]:
        """path → bytes of all files."""
        commit = self.find(revision)
        return {p: self.storage.read(e.oid) or b"" for p, e in commit.files.items()} if commit else {}

    def find(self, revision: str) -> Commit | None:
        """The commit of a branch, a tag or a commit hash."""
        sha = self.branches.get(revision) or self.tags.get(revision) or revision
        return self.commits.get(sha)


class Storage:
    """Blobs and repositories below one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.RLock()
        self.repositories: dict[str, Repository] = {}
        (root / "blobs").mkdir(parents=True, exist_ok=True)

    def create(self, name: str, *, private: bool = False, gated: bool = False) -> Repository:
        """An empty repository."""
        with self.lock:
            repository = Repository(name, self, private=private, gated=gated)
            self.repositories[name] = repository
            return repository

    def entry(self, data: bytes, lfs: bool | None = None) -> Entry:
        """Store bytes."""
        oid = hashlib.sha256(data).hexdigest()
        with self.lock:
            if not (self.root / "blobs" / oid).exists():
                (self.root / "blobs" / oid).write_bytes(data)
        git = hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()
        return Entry(oid, len(data), len(data) >= LFS_FROM if lfs is None else lfs, git)

    def read(self, oid: str) -> bytes | None:
        """The bytes with this sha256."""
        path = self.root / "blobs" / oid
        return path.read_bytes() if path.is_file() else None
