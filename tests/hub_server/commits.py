"""The commit: which files are large, then all changes at once."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

from .access import readable, writable
from .state import Commit, File, Repo, State, large_file, regular_file
from .web import Refusal, Request, Response, Route, json_response


def target(state: State, request: Request, repo: str) -> Repo:
    """The repository that a commit goes to; to open a pull request it is enough to see it.

    Raises:
        Refusal: As `readable` and `writable`.
    """
    return (readable if "create_pr" in request.query else writable)(state, request, repo)


def preupload(state: State, request: Request, repo: str, revision: str) -> Response:
    found = target(state, request, repo)
    present = found.at(revision).files
    return json_response({"files": [_upload_mode(found, present.get(f["path"]), f) for f in request.json()["files"]]})


def _upload_mode(repo: Repo, present: File | None, asked: dict[str, Any]) -> dict[str, Any]:
    """How the client must send a file; the content that is there now lets it leave an unchanged one out."""
    is_large = repo.needs_lfs(asked["path"], base64.b64decode(asked["sample"]), asked["size"])
    answer = {"path": asked["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
    return answer | ({"oid": present.etag} if present else {})


def commit(state: State, request: Request, repo: str, revision: str) -> Response:
    found = target(state, request, repo)
    header, *changes = [json.loads(line) for line in request.body.splitlines()]
    with state.lock:
        base = found.at(revision)
        if header["value"].get("parentCommit", base.oid) != base.oid:
            raise Refusal(412, "The branch was updated since you opened this page. Please refresh and try again.")
        made = _add(found, revision, base, header["value"]["summary"], apply(state, base, changes), request)
    answer = {"commitOid": made.oid, "commitUrl": f"{state.url}/{repo}/commit/{made.oid}"}
    if "create_pr" in request.query:
        answer["pullRequestUrl"] = f"{state.url}/{repo}/discussions/{len(found.pull_requests)}"
    return json_response(answer)


def _add(repo: Repo, revision: str, base: Commit, title: str, files: dict[str, File], request: Request) -> Commit:
    if "create_pr" in request.query:
        return repo.commit(repo.pull_requests, f"refs/pr/{len(repo.pull_requests) + 1}", title, files, base.oid)
    for refs in (repo.branches, repo.pull_requests):
        if revision in refs:
            return repo.commit(refs, revision, title, files, base.oid)
    raise Refusal(404, f"{revision} is no branch", "RevisionNotFound")


def apply(state: State, base: Commit, changes: Iterable[dict[str, Any]]) -> dict[str, File]:
    """The files of a commit after its changes.

    Raises:
        Refusal: 422 for a path that leaves the repository, 400 for large content that was never uploaded, 404 for
            a deleted file that is not there.
    """
    files = dict(base.files)
    for change in changes:
        kind, value = change["key"], change["value"]
        path = value["path"]
        if ".." in path.replace("\\", "/").split("/"):
            raise Refusal(422, f"invalid path {path!r}")
        if kind == "file":
            files[path] = regular_file(base64.b64decode(value["content"]))
        elif kind == "lfsFile":
            files[path] = _uploaded(state, value["oid"])
        elif kind == "deletedFile":
            if files.pop(path, None) is None:
                raise Refusal(404, "A file with this name doesn't exist", "EntryNotFound")
        elif kind == "deletedFolder":
            files = {p: file for p, file in files.items() if not p.startswith(path.rstrip("/") + "/")}
    return files


def _uploaded(state: State, sha256: str) -> File:
    size = state.stored_size(sha256)
    if size is None:
        raise Refusal(400, f"the content of LFS object {sha256} was never uploaded")
    return large_file(sha256, size)


ROUTES = (
    Route("preupload", "POST", "/api/models/{repo}/preupload/{revision}", preupload),
    Route("commit", "POST", "/api/models/{repo}/commit/{revision}", commit),
)
