"""From a name to a model folder: the built-in encoder, a folder, or a repository of the Hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mixsiam_hub.config import CONFIG_FILE, MANIFEST_FILE
from mixsiam_hub.errors import HubError, ModelError
from mixsiam_hub.folder import ModelFolder

BUILTIN = Path(__file__).parent / "builtin"
_HUB_NAME = re.compile(r"(?P<repo>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>.+))?")


def resolve(
    name_or_path: str | Path | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> ModelFolder:
    """Finds a model. Of a Hub repository only the two JSON files are fetched now, the others when they are opened.

    Args:
        name_or_path: None for the built-in encoder, a folder, or a Hub id `org/name`, with or without `@revision`.
        revision: Branch, tag or commit of a Hub id without `@`; None is the main branch.
        token: For private and gated repositories; None takes the one that `hf auth login` stored.
        cache_dir: Where the Hub's files are kept; None is the client's own cache.
        local_files_only: Never use the network.

    Raises:
        ModelError: No such folder, one that breaks the contract, or a revision where there can be none.
        HubError: The repository, its revision or a file cannot be reached, found or read.
    """
    if revision and (name_or_path is None or Path(name_or_path).is_dir()):
        raise ModelError(f"revision is {revision!r}, but only a Hub id has revisions; leave it out")
    if name_or_path is None:
        if not BUILTIN.is_dir():
            raise ModelError("this installation carries no built-in encoder; name a model folder or a Hub id org/name")
        return ModelFolder.open(BUILTIN)
    if Path(name_or_path).is_dir():
        return ModelFolder.open(name_or_path)
    match = _HUB_NAME.fullmatch(str(name_or_path))
    if match is None:
        raise ModelError(f"{name_or_path} is neither a folder nor a Hub id such as org/name or org/name@revision")
    if revision and match["revision"]:
        raise ModelError(f"{name_or_path} names a revision, and revision is {revision!r}; give one of the two")
    repo = HubRepo(match["repo"], revision or match["revision"], token, cache_dir, local_files_only)
    return repo.open()


@dataclass(frozen=True)
class HubRepo:
    """A repository of the Hub. Pickles without its token, which must not end up in a file or a message.

    Attributes:
        name: `org/name`.
        revision: Branch, tag or commit; None is the main branch.
        token: None takes the one that `hf auth login` stored.
        cache_dir: None is the client's own cache.
        local_files_only: Never use the network.
    """

    name: str
    revision: str | None = None
    token: str | None = field(default=None, repr=False)
    cache_dir: str | Path | None = None
    local_files_only: bool = False

    def __reduce__(self) -> tuple[Any, ...]:
        return HubRepo, (self.name, self.revision, None, self.cache_dir, self.local_files_only)

    def open(self) -> ModelFolder:
        """Returns the folder at the commit that the revision stands for now.

        Raises:
            ModelError: The folder breaks the contract.
            HubError: It cannot be reached, found or read.
        """
        snapshot = self.fetch(CONFIG_FILE).parent  # First: by this file the Hub counts its downloads.
        # The cache names a snapshot by its commit. All further files are of that one, whatever is pushed meanwhile.
        pinned = replace(self, revision=snapshot.name)
        pinned.fetch(MANIFEST_FILE)
        fetch: Callable[[str], Path] = pinned.fetch
        return ModelFolder.open(snapshot, revision=pinned.revision, fetch=fetch)

    def fetch(self, name: str) -> Path:
        """Returns the path of one file in the cache, downloaded if it is not there yet.

        Raises:
            HubError: It cannot be reached, found or read.
        """
        from huggingface_hub import hf_hub_download

        try:
            path = hf_hub_download(
                self.name,
                name,
                revision=self.revision,
                token=self.token,
                cache_dir=self.cache_dir,
                local_files_only=self.local_files_only,
                library_name="mixsiam-hub",
            )
        except Exception as error:  # The client's transport errors have no root of their own.
            raise HubError(self._explain(error, name)) from error
        return Path(str(path))

    def _explain(self, error: Exception, name: str) -> str:
        from huggingface_hub import errors

        where = self.name if self.revision is None else f"{self.name}@{self.revision}"
        # From the narrowest class to the widest: a gated repository is also one that was not found.
        reasons: list[tuple[type[Exception], str]] = [
            (errors.GatedRepoError, "is gated: ask for access on its page, then run `hf auth login` or give token=..."),
            (
                errors.RepositoryNotFoundError,
                "is no folder here and not on the Hub, or private: check the name, or give token=...",
            ),
            (errors.RevisionNotFoundError, "has no such revision: give a branch, a tag or a full commit"),
            (errors.LocalEntryNotFoundError, f"has no {name} in the cache and the Hub was not reached: go online"),
            (errors.OfflineModeIsEnabled, f"has no {name} in the cache: unset HF_HUB_OFFLINE to download it"),
            (errors.EntryNotFoundError, f"has no {name}: it is not a folder written by `mixsiam export`"),
        ]
        reason = next((text for kind, text in reasons if isinstance(error, kind)), None)
        return f"{where} {reason}" if reason else f"{where}: {name} could not be fetched: {error}"
