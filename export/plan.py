"""What a push would change: a model folder beside what the Hub holds. Nothing here talks to the Hub."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub.utils.sha import git_hash

from mixsiam_hub.model.files import CARD_FILE, CONFIG_FILE, MANIFEST_FILE
from mixsiam_hub.model.folder import ModelFolder


@dataclass(frozen=True)
class LocalFile:
    """A file as it would go to the Hub.

    Attributes:
        name: Path in the folder and in the repository.
        source: Where it is, or what it holds.
        size: In bytes.
        sha256: In hex; the Hub names large files by it.
        git_sha1: Of git's blob, in hex; the Hub names the others by it.
    """

    name: str
    source: Path | bytes = field(repr=False)
    size: int
    sha256: str
    git_sha1: str

    @classmethod
    def of(cls, name: str, source: Path | bytes) -> LocalFile:
        """Reads and hashes a file."""
        data = source if isinstance(source, bytes) else source.read_bytes()
        return cls(name, source, len(data), hashlib.sha256(data).hexdigest(), git_hash(data))

    def is_in(self, files: Mapping[str, str]) -> bool:
        """Tells whether a commit with these files (path -> hash) holds this one."""
        return files.get(self.name) in (self.sha256, self.git_sha1)


@dataclass(frozen=True)
class Remote:
    """What the Hub holds where a push goes. The default is a repository that is yet to be made.

    Attributes:
        commit: That the push builds on; None without a repository.
        is_private: Whether the repository is private.
        files: Path -> hash, as in LocalFile one of the two.
        listed: The files that the mixsiam.json there lists.
        heads: Ref -> commit, of branches (as in `main`) and pull requests (as in `refs/pr/1`).
        tags: Tag -> commit.
    """

    commit: str | None = None
    is_private: bool = False
    files: Mapping[str, str] = field(default_factory=dict)
    listed: frozenset[str] = frozenset()
    heads: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PushPlan:
    """A folder whose files were checked, and what its push would do.

    Attributes:
        folder: The folder.
        repo: `org/name`.
        branch: Where the commit goes, or what the pull request is for.
        private: Make the repository a private one.
        create_pr: Open a pull request instead of moving the branch.
        tag: Given to the commit once it has been checked; None for no tag.
        files: Everything that the commit must hold of the folder.
        left_out: Files in the folder that are no part of the model.
        keeps_card: Whether the Hub's README.md stays, since somebody edited it or an older version wrote it.
        remote: What is there.
    """

    folder: ModelFolder
    repo: str
    branch: str
    private: bool
    create_pr: bool
    tag: str | None
    files: tuple[LocalFile, ...]
    left_out: tuple[str, ...]
    keeps_card: bool
    remote: Remote

    @property
    def changed(self) -> tuple[LocalFile, ...]:
        """Files that the Hub does not hold, or holds otherwise."""
        return tuple(file for file in self.files if not file.is_in(self.remote.files))

    @property
    def obsolete(self) -> tuple[str, ...]:
        """Files of the model on the Hub that this one lacks: a runtime might load them with the others."""
        here = {file.name for file in self.files}
        return tuple(sorted((self.remote.listed & self.remote.files.keys()) - here))

    @property
    def changes_something(self) -> bool:
        """Whether there is anything to commit."""
        return bool(self.changed or self.obsolete)

    def is_in(self, files: Mapping[str, str]) -> bool:
        """Tells whether a commit with these files (path -> hash) is the one that was planned."""
        return all(file.is_in(files) for file in self.files) and not any(name in files for name in self.obsolete)

    def describe(self) -> str:
        """Returns the plan in lines for people."""
        return "\n".join([self._place(), *self._rows(), self._outcome()])

    def _place(self) -> str:
        privacy = "private" if self.private or self.remote.is_private else "public, or as its owner's default is"
        if self.remote.commit is None:
            return f"{self.repo} is not there yet: it will be made, {privacy}"
        at = f"{self.repo}, {'private' if self.remote.is_private else 'public'}, at {self.remote.commit[:12]}"
        if self.branch in self.remote.heads:
            return f"{at} on {self.branch}"
        return f"{at} on main; the branch {self.branch} will start there"

    def _rows(self) -> Iterator[str]:
        changed = set(self.changed)
        for file in self.files:
            state = "same" if file not in changed else "changed" if file.name in self.remote.files else "new"
            yield f"  {state:<9}{file.size:>13,}  {file.name}"
        for name in self.obsolete:
            yield f"  {'remove':<9}{'':>13}  {name} (of the model that is there, not of this one)"
        if self.keeps_card:
            yield f"  {'keep':<9}{'':>13}  {CARD_FILE} (edited, or by an older version; --overwrite-card replaces it)"
        for name in self.left_out:
            yield f"  {'left out':<9}{'':>13}  {name} (not listed in {MANIFEST_FILE})"

    def _outcome(self) -> str:
        tag = f"; then the tag {self.tag}" if self.tag else ""
        if not self.changes_something:
            return f"nothing has changed: no commit{tag}"
        size = sum(file.size for file in self.changed) / 1e6
        what = "one pull request" if self.create_pr else "one commit"
        return f"{what}: {len(self.changed)} files of {size:.1f} MB, {len(self.obsolete)} removed{tag}"


def model_files(folder: ModelFolder) -> list[str]:
    """Returns the names of a model's files: what mixsiam.json lists, config.json and mixsiam.json; not the card."""
    return sorted({CONFIG_FILE, MANIFEST_FILE, *folder.manifest.files})


def other_files(folder: ModelFolder, pushed: Iterable[str]) -> tuple[str, ...]:
    """Returns the names of the files in a folder that are not pushed; hidden ones, which tools leave, go unnamed."""
    paths = (path.relative_to(folder.path) for path in folder.path.rglob("*") if path.is_file())
    names = {path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)}
    return tuple(sorted(names - set(pushed)))
