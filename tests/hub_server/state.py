"""What the Hub remembers, in memory: accounts, repositories, and the content that commits point at."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch

from .web import Refusal
from .xet_store import XetStore

MAIN = "main"
REGULAR_LIMIT_BYTES = 10 * 2**20
GITATTRIBUTES = b"".join(
    f"*.{suffix} filter=lfs diff=lfs merge=lfs -text\n".encode()
    for suffix in ("bin", "npz", "onnx", "parquet", "pt", "pth", "safetensors", "tar", "zip")
)
"""Every new repository's .gitattributes; the Hub's list is longer."""


@dataclass(frozen=True)
class Account:
    """Who a token speaks for.

    Attributes:
        namespaces: What the account owns repositories under: its own name, and its organisations.
        can_write: False for a token of the role "read".
    """

    name: str
    namespaces: tuple[str, ...]
    can_write: bool = True


@dataclass(frozen=True)
class File:
    """One file of a commit: regular, with its content here, or large, named by its sha256.

    Attributes:
        oid: Git's hash (40 hex digits) of the content, or of the LFS pointer.
        sha256: Of a large file's content, else None.
    """

    size: int
    oid: str
    content: bytes | None = None
    sha256: str | None = None

    @property
    def etag(self) -> str:
        """What the client names the cached file by."""
        return self.sha256 or self.oid


@dataclass(frozen=True)
class Commit:
    """One commit: all its files by path, so that it is visible whole or not at all."""

    oid: str
    parent: str | None
    title: str
    date: str
    files: Mapping[str, File]


class Repo:
    """One model repository. Every ref points at a commit, and only `commit` and the branch and tag routes move one.

    Args:
        repo_id: As in `lab/encoder`.
    """

    def __init__(self, repo_id: str, private: bool = False) -> None:
        self.id, self.private = repo_id, private
        self.gated = False
        self.granted: set[str] = set()
        """Names of the accounts that a gated repository's owner let in."""
        self.commits: dict[str, Commit] = {}
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.pull_requests: dict[str, str] = {}
        """By ref, as in `refs/pr/1`."""
        self.closed: set[str] = set()
        """Refs of the pull requests that are no longer open."""
        self.created = now()
        self.commit(self.branches, MAIN, "initial commit", {".gitattributes": regular_file(GITATTRIBUTES)})

    @property
    def namespace(self) -> str:
        return self.id.split("/")[0]

    def find(self, revision: str) -> Commit | None:
        """The commit of a branch, tag, pull request or full commit hash."""
        for refs in (self.branches, self.tags, self.pull_requests):
            if revision in refs:
                return self.commits[refs[revision]]
        return self.commits.get(revision)

    def at(self, revision: str) -> Commit:
        """As `find`.

        Raises:
            Refusal: 404, there is no such revision.
        """
        commit = self.find(revision)
        if commit is None:
            raise Refusal(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def commit(
        self, refs: dict[str, str], ref: str, title: str, files: Mapping[str, File], parent: str | None = None
    ) -> Commit:
        """Adds a commit and moves (or makes) a ref to it."""
        tree = sorted((path, file.oid) for path, file in files.items())
        oid = hashlib.sha1(f"{self.id} {len(self.commits)} {parent} {title} {tree}".encode()).hexdigest()
        self.commits[oid] = Commit(oid, parent, title, now(), dict(files))
        refs[ref] = oid
        return self.commits[oid]

    def needs_lfs(self, path: str, sample: bytes, size: int) -> bool:
        """Whether a file is stored as a large one: by .gitattributes, size, or a first part that is no text."""
        attributes = self.commits[self.branches[MAIN]].files.get(".gitattributes")
        lines = (attributes.content or b"").decode().splitlines() if attributes else []
        patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
        name = path.rsplit("/", 1)[-1]
        return any(fnmatch(name, p) for p in patterns) or size > REGULAR_LIMIT_BYTES or is_binary(sample)


@dataclass
class State:
    """Everything, for the handlers. `lock` is held while a ref moves.

    Attributes:
        url: Of the Hub's origin.
        storage_url: Of the second origin: LFS objects and xet.
        tokens: Token -> account.
        repos: Id -> repository.
        objects: sha256 -> content, of files uploaded by LFS.
        xet: Content uploaded by xet.
        xet_tokens: Token -> when it expires, in seconds since 1970.
        xet_token_seconds: How long a new one lasts; huggingface_hub caches none of less than a minute.
    """

    url: str = ""
    storage_url: str = ""
    tokens: dict[str, Account] = field(default_factory=dict)
    repos: dict[str, Repo] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    xet: XetStore = field(default_factory=XetStore)
    xet_tokens: dict[str, int] = field(default_factory=dict)
    xet_token_seconds: int = 3600
    lock: threading.RLock = field(default_factory=threading.RLock)

    def stored_size(self, sha256: str) -> int | None:
        """Length of a large file that was uploaded, by either way; None for one that was not."""
        if sha256 in self.objects:
            return len(self.objects[sha256])
        xet_hash = self.xet.hash_of(sha256)
        return self.xet.size(xet_hash) if xet_hash else None


def now() -> str:
    """The time, as the Hub writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def regular_file(content: bytes) -> File:
    """A file that the commit itself holds."""
    return File(len(content), git_hash(content), content=content)


def large_file(sha256: str, size: int) -> File:
    """A file that the commit holds a pointer to."""
    return File(size, git_hash(lfs_pointer(sha256, size)), sha256=sha256)


def lfs_pointer(sha256: str, size: int) -> bytes:
    """What git stores in the place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def git_hash(content: bytes) -> str:
    """Git's name of a blob, 40 hex digits."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_binary(sample: bytes) -> bool:
    """Whether the first bytes of a file are no UTF-8 text; a character cut at the end does not count."""
    try:
        sample.decode()
    except UnicodeDecodeError as error:
        return error.start < len(sample) - 3
    return b"\0" in sample
