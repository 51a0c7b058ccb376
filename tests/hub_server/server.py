"""The Hub that a test holds in its hand: two origins, the knobs, and a view from inside that no client cache blurs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from . import commits, files, repos, xet
from .faults import Fault, Faults
from .state import MAIN, Account, Commit, File, Repo, State, large_file, regular_file
from .web import Logged, Origin

ALICE, ALICE_READ_ONLY, BOB = "hf_alice", "hf_alice_read_only", "hf_bob"
"""Tokens. Alice owns `alice` and the organisation `lab`; Bob owns `bob` and is a stranger to both."""

HUB_ROUTES = (*repos.ROUTES, *commits.ROUTES, *files.HUB_ROUTES, *xet.HUB_ROUTES)
STORAGE_ROUTES = (*files.STORAGE_ROUTES, *xet.STORAGE_ROUTES)


class LocalHub:
    """A running Hub; `close` it.

    Attributes:
        log: A line for each request, in the order of the answers.
        state: What it remembers; a test may change it, as in `hub.state.repos["lab/x"].gated = True`.
    """

    def __init__(self) -> None:
        alice = Account("alice", ("alice", "lab"))
        accounts = {ALICE: alice, ALICE_READ_ONLY: Account("alice", alice.namespaces, can_write=False)}
        self.state = State(tokens={**accounts, BOB: Account("bob", ("bob",))})
        self.log: list[Logged] = []
        self._faults = Faults(route.name for route in HUB_ROUTES + STORAGE_ROUTES)
        self._origins = [
            Origin(self.state, routes, self._faults, self.log, xet.OWN_HEADER)
            for routes in (HUB_ROUTES, STORAGE_ROUTES)
        ]
        self.state.url, self.state.storage_url = (origin.url for origin in self._origins)

    @property
    def url(self) -> str:
        """The HF_ENDPOINT of this Hub."""
        return self.state.url

    def close(self) -> None:
        """Stops both origins."""
        for origin in self._origins:
            origin.close()

    def fault(self, route: str, fault: Fault, times: int = 1) -> None:
        """Lets a fault befall the next requests of a route, as in `hub.fault("commit", fail(503), times=2)`.

        Raises:
            ValueError: No route has that name; the message lists them.
        """
        self._faults.add(route, fault, times)

    @property
    def faults_waiting(self) -> dict[str, int]:
        """Faults that no request has met: assert that it is empty, or the test has tested nothing."""
        return self._faults.waiting

    def end_faults(self) -> None:
        """Forgets the faults that no request has met: the trouble is over."""
        self._faults.clear()

    def revoke(self, token: str) -> None:
        """Makes a token invalid, as if it had expired."""
        del self.state.tokens[token]

    def requests(self, *routes: str) -> list[Logged]:
        """The log's lines of these routes."""
        return [line for line in self.log if line.route in routes]

    def add_repo(self, repo_id: str, files: Mapping[str, bytes], *, private: bool = False, gated: bool = False) -> Repo:
        """Makes a repository with these files on main, without any request."""
        repo = Repo(repo_id, private)
        repo.gated = gated
        self.state.repos[repo_id] = repo
        self.add_commit(repo_id, files)
        return repo

    def add_commit(self, repo_id: str, files: Mapping[str, bytes], branch: str = MAIN) -> Commit:
        """Commits files as a second writer would, without any request."""
        repo = self.state.repos[repo_id]
        with self.state.lock:
            base = repo.at(branch)
            added = {path: self._store(repo, path, content) for path, content in files.items()}
            return repo.commit(repo.branches, branch, "another writer", {**base.files, **added}, base.oid)

    def _store(self, repo: Repo, path: str, content: bytes) -> File:
        if not repo.needs_lfs(path, content[:512], len(content)):
            return regular_file(content)
        sha256 = hashlib.sha256(content).hexdigest()
        self.state.objects[sha256] = content
        return large_file(sha256, len(content))

    def read(self, repo_id: str, revision: str = MAIN) -> dict[str, bytes]:
        """Every file of a revision, as stored here, except .gitattributes."""
        held = self.state.repos[repo_id].at(revision).files
        return {
            path: files.stored(self.state, file.etag) if file.content is None else file.content
            for path, file in held.items()
            if path != ".gitattributes"
        }

    def history(self, repo_id: str, revision: str = MAIN) -> list[Commit]:
        """The commits of a revision, newest first, down to the empty repository's."""
        repo = self.state.repos[repo_id]
        commit: Commit | None = repo.at(revision)
        found = []
        while commit:
            found.append(commit)
            commit = repo.commits[commit.parent] if commit.parent else None
        return found
