"""From a name to a model folder: the built-in encoder, a folder, or a repository of the Hub."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mixsiam_hub.errors import ArgumentError, HubError, ModelError
from mixsiam_hub.model.files import CONFIG_FILE, MANIFEST_FILE
from mixsiam_hub.model.folder import ModelFolder
from mixsiam_hub.untrusted import one_line

BUILTIN = Path(__file__).parents[1] / "builtin"
_BUILTIN_NAME = "builtin"
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_HUB_NAME = re.compile(rf"(?P<repo>{HUB_ID.pattern})(@(?P<revision>.+))?")

_SECRET = re.compile(r"(?i)\bhf_\w+|\b(bearer|basic)\s.*|\bauthorization\b.*", re.DOTALL)
"""A token, or a header that holds one, in the text of an error; what follows a header's name is the token."""

_XET_REFUSED = re.compile(r"HTTP status (?:client|server) error \((\d{3})")
_XET_LOST = re.compile(r"error sending request for url|HTTP status server error")
"""What xet's errors say: of their classes none tells an answer that refuses, and not all a connection that was lost."""

_BUSY = (408, 429, 500, 502, 503, 504)
_STATUS_REASONS = {
    401: "the token is wrong, revoked or expired: run `hf auth login`, or give another as HF_TOKEN or token=...",
    403: "the token may not do this: give one with the right, or ask the repository's owner",
    412: "somebody else committed meanwhile: nothing was changed; look at the new state and push again",
    **dict.fromkeys(_BUSY, "the Hub is busy or down: try again later"),
}
_DISK_FULL = "the disk is full: free some space, or put the cache on another one by HF_HOME or cache_dir=..."
_READ_ONLY = "the cache cannot be written and lacks this file: fill it, or give another one by HF_HOME or cache_dir=..."
_DISK_REASONS = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), _DISK_FULL),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), _READ_ONLY),
}


def resolve(
    name_or_path: str | Path | None = None,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> ModelFolder:
    """Finds a model. Of a Hub repository only the two JSON files are fetched now, the others when they are opened.

    Of one that timm saved, which has no mixsiam.json, the weights are fetched too: nothing else says its fingerprint.

    Args:
        name_or_path: A folder, a Hub id `org/name` with or without `@revision`, or None for the built-in encoder, as is
            `builtin` where no folder has that name.
        revision: Branch, tag or commit of a Hub id without `@`; None is the main branch.
        token: For private and gated repositories; None takes the one that `hf auth login` stored.
        cache_dir: Where the Hub's files are kept; None is the client's own cache.
        local_files_only: Never use the network.

    Raises:
        ModelError: No such folder, one that breaks the contract, or a revision where there can be none.
        HubError: The repository, its revision or a file cannot be reached, found or read.
        ArgumentError: The token cannot be one.
    """
    token = checked_token(token)
    if str(name_or_path) == _BUILTIN_NAME and not os.path.isdir(_BUILTIN_NAME):
        name_or_path = None
    if revision and (name_or_path is None or os.path.isdir(name_or_path)):
        raise ModelError(f"revision is {revision!r}, but only a Hub id has revisions; leave it out")
    if name_or_path is None:
        if not BUILTIN.is_dir():
            raise ModelError("this installation carries no built-in encoder; name a model folder or a Hub id org/name")
        return ModelFolder.open(BUILTIN)
    if os.path.isdir(name_or_path):
        return ModelFolder.open(name_or_path)
    match = _HUB_NAME.fullmatch(str(name_or_path))
    if match is None:
        raise ModelError(
            f"{one_line(name_or_path)} is neither a folder nor a Hub id such as org/name or org/name@revision"
        )
    if revision and match["revision"]:
        raise ModelError(f"{name_or_path} names a revision, and revision is {revision!r}; give one of the two")
    cache_dir = None if cache_dir is None else os.path.abspath(cache_dir)  # Files are fetched later too.
    repo = HubRepo(match["repo"], revision or match["revision"], token, cache_dir, local_files_only)
    return repo.open()


def checked_token(token: str | None) -> str | None:
    """Returns a token without the white space around it, which copying brings along; None for an empty one.

    Raises:
        ArgumentError: It has characters that none has. The message does not show it.
    """
    token = (token or "").strip()
    if not re.fullmatch("[!-~]*", token):
        raise ArgumentError("token has white space or other characters that no token has; copy it again, on one line")
    return token or None


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
            ModelError: The folder breaks the contract, and is none that timm saved.
            HubError: It cannot be reached, found or read.
        """
        snapshot = self.fetch(CONFIG_FILE).parent  # First: by this file the Hub counts its downloads.
        # The cache names a snapshot by its commit. All further files are of that one, whatever is pushed meanwhile.
        pinned = replace(self, revision=snapshot.name)
        pinned.has(MANIFEST_FILE)  # Then it is in the snapshot, by which `open` tells a plain folder.
        fetch: Callable[[str], Path] = pinned.fetch
        return ModelFolder.open(snapshot, revision=pinned.revision, fetch=fetch)

    def has(self, name: str) -> bool:
        """Tells whether a commit, which `revision` must name, has a file, and brings it into the cache if so.

        The cache also keeps what a commit has not, so that this is known without network later.

        Raises:
            HubError: It cannot be told, or the file cannot be read.
        """
        from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache
        from huggingface_hub.errors import RemoteEntryNotFoundError

        if try_to_load_from_cache(self.name, name, self.cache_dir, self.revision) is _CACHED_NO_EXIST:
            return False
        try:
            self.fetch(name)
        except HubError as error:
            if isinstance(error.__cause__, RemoteEntryNotFoundError):
                return False
            raise
        return True

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
            where = self.name if self.revision is None else f"{self.name}@{self.revision}"
            raise hub_error(error, f"{where}: {name} could not be fetched") from unless_secret(error)
        return Path(str(path))


def hub_error(error: Exception, failed: str) -> HubError:
    """Turns an error of the Hub's client into ours, which says why and what to do.

    Args:
        error: What the client raised.
        failed: What could not be done, and where, as in `org/name@main: config.json could not be fetched`.
    """
    # What the client met first says most: around it may stand a general "not found in the cache".
    for cause in reversed(list(_causes(error))):
        if reason := _reason(cause):
            return HubError(f"{failed}: {reason}")
    return HubError(f"{failed}: {_said(error)}")


def unless_secret(error: Exception) -> Exception | None:
    """Returns an error to raise ours from; None if a token stands in it or its causes, since a traceback prints all."""
    return None if any(_SECRET.search(str(cause)) for cause in _causes(error)) else error


def _said(error: BaseException) -> str:
    """Returns the words of an error on a line, without tokens."""
    return one_line(_SECRET.sub("[token]", str(error)), 500)


def connection_was_lost(error: Exception) -> bool:
    """Tells a failure on the way, which another try may get past, from an answer of the Hub."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    for cause in _causes(error):
        if isinstance(cause, OfflineModeIsEnabled):
            return False
        if status := _status(cause):
            return status in _BUSY
        # The client's transport is httpx, under a name that changes with its version; xet's raises built-in classes.
        if isinstance(cause, ConnectionError | TimeoutError) or type(cause).__module__.startswith("httpx"):
            return True
        if _XET_LOST.search(str(cause)):  # a RuntimeError, where it was to fetch a file
            return True
    return False


def _reason(cause: BaseException) -> str | None:
    """Says why one error of the chain happened and what to do; None where that error does not tell."""
    from huggingface_hub import errors

    # From the narrowest class to the widest: a gated repository is also one that was not found.
    reasons: list[tuple[type[Exception], str]] = [
        (errors.GatedRepoError, "the repository is gated: ask for access on its page, then run `hf auth login`"),
        (
            errors.RepositoryNotFoundError,
            "it is no folder here, and on the Hub it is missing or private: check the name, run `hf auth login`, or "
            "give token=...",
        ),
        (errors.RevisionNotFoundError, "there is no such revision: give a branch, a tag or a full commit"),
        (errors.OfflineModeIsEnabled, "HF_HUB_OFFLINE is set: unset it to reach the Hub"),
        (errors.LocalEntryNotFoundError, "it is not in the cache, and the Hub was not asked or not reached: go online"),
        (
            errors.EntryNotFoundError,
            "the repository has none: an encoder is a folder that `mixsiam export` or `mixsiam import` wrote, or a "
            "ResNet that timm saved with safe_serialization=True; weights in other formats are never opened",
        ),
        (errors.LocalTokenNotFoundError, "there is no token: run `hf auth login`, or set HF_TOKEN"),
    ]
    if reason := next((text for kind, text in reasons if isinstance(cause, kind)), None):
        return reason
    if status := _status(cause):
        return _STATUS_REASONS.get(status)
    if isinstance(cause, OSError) and cause.errno in _DISK_REASONS:
        return _DISK_REASONS[cause.errno]
    if "No space left on device" in str(cause):  # by xet
        return _DISK_FULL
    if refused := _XET_REFUSED.search(str(cause)):
        return _STATUS_REASONS.get(int(refused[1]))
    if isinstance(cause, PermissionError):
        return _STATUS_REASONS[403]
    if isinstance(cause, Exception) and connection_was_lost(cause):
        return f"the Hub was not reached ({_said(cause)}): check the connection, and HF_ENDPOINT if it is set"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error, what it was raised from, and so on, down to an answer of the Hub."""
    while error is not None:
        yield error
        before = None if error.__suppress_context__ else error.__context__
        error = None if _status(error) else error.__cause__ or before


def _status(error: BaseException) -> int | None:
    """Returns the HTTP status of an error that is an answer of the Hub."""
    status: int | None = getattr(getattr(error, "response", None), "status_code", None)
    return status
