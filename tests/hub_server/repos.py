"""Accounts and repositories: who am I, create, describe, list, branch and tag; ROUTES, at the end, is the index."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import yaml

from .access import may_write, readable, signed_in, writable
from .state import MAIN, Commit, File, Repo, State, git_hash, lfs_pointer
from .web import Refusal, Request, Response, Route, json_response


def whoami(state: State, request: Request) -> Response:
    account = signed_in(state, request)
    orgs = [{"type": "org", "name": name} for name in account.namespaces if name != account.name]
    access = {
        "displayName": "test",
        "role": "write" if account.can_write else "read",
        "createdAt": "2026-01-01T00:00:00.000Z",
    }
    auth = {"type": "access_token", "accessToken": access}
    return json_response(
        {"type": "user", "id": account.name, "name": account.name, "fullname": account.name, "orgs": orgs, "auth": auth}
    )


def create(state: State, request: Request) -> Response:
    asked = request.json()
    account = signed_in(state, request)
    namespace = asked.get("organization") or account.name
    may_write(account, namespace)
    repo_id = f"{namespace}/{asked['name']}"
    answer = {"url": f"{state.url}/{repo_id}", "name": repo_id, "id": repo_id}
    with state.lock:
        if repo_id in state.repos:
            return json_response({**answer, "error": "You already created this model repo"}, 409)
        state.repos[repo_id] = Repo(repo_id, asked.get("visibility") == "private")
    return json_response(answer)


def validate_yaml(state: State, request: Request) -> Response:
    try:
        metadata = front_matter(request.json()["content"])
    except yaml.YAMLError as error:
        return json_response({"errors": [{"message": f"invalid YAML: {error}"}], "warnings": []}, 400)
    warnings = [] if metadata else [{"message": "empty or missing yaml metadata in repo card"}]
    return json_response({"errors": [], "warnings": warnings})


def front_matter(card: str) -> dict[str, Any]:
    """The metadata at the head of a card; empty where there is none.

    Raises:
        yaml.YAMLError: It is not YAML.
    """
    parts = card.split("---\n", 2)
    metadata = yaml.safe_load(parts[1]) if len(parts) == 3 and not parts[0] else None
    return metadata if isinstance(metadata, dict) else {}


def info(state: State, request: Request, repo: str, revision: str = MAIN) -> Response:
    found = readable(state, request, repo)
    commit = found.at(revision)
    card = commit.files.get("README.md")
    metadata = front_matter((card.content or b"").decode()) if card else {}
    about: dict[str, Any] = {"id": repo, "author": found.namespace, "sha": commit.oid, "lastModified": commit.date}
    about |= {"createdAt": found.created, "private": found.private, "gated": "auto" if found.gated else False}
    about |= {"disabled": False, "downloads": 0, "likes": 0, "tags": metadata.get("tags", []), "cardData": metadata}
    about |= {key: metadata[key] for key in ("library_name", "pipeline_tag") if key in metadata}
    about["siblings"] = [_sibling(path, file, "blobs" in request.query) for path, file in sorted(commit.files.items())]
    return json_response(about)


def _sibling(path: str, file: File, with_blobs: bool) -> dict[str, Any]:
    if not with_blobs:
        return {"rfilename": path}
    entry: dict[str, Any] = {"rfilename": path, "size": file.size, "blobId": file.oid}
    if file.sha256:
        pointer_size = len(lfs_pointer(file.sha256, file.size))
        entry["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": pointer_size}
    return entry


def tree(state: State, request: Request, repo: str, revision: str, path: str = "") -> Response:
    commit = readable(state, request, repo).at(revision)
    folder = PurePosixPath(path)
    below = {p: f for p, f in commit.files.items() if folder in PurePosixPath(p).parents}
    if not below:
        raise Refusal(404, f"{path} does not exist on {revision}", "EntryNotFound")
    folders = {parent for p in below for parent in PurePosixPath(p).parents if folder in parent.parents}
    entries: list[dict[str, Any]] = [
        {"type": "directory", "path": str(p), "oid": git_hash(str(p).encode()), "size": 0} for p in sorted(folders)
    ]
    entries += [_tree_file(state, p, file) for p, file in sorted(below.items())]
    if request.query.get("recursive", "").lower() != "true":
        entries = [entry for entry in entries if PurePosixPath(entry["path"]).parent == folder]
    return json_response(entries)


def _tree_file(state: State, path: str, file: File) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": file.size, "oid": file.oid}
    if file.sha256:
        pointer_size = len(lfs_pointer(file.sha256, file.size))
        entry["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": pointer_size}
        xet_hash = state.xet.hash_of(file.sha256)
        entry |= {"xetHash": xet_hash} if xet_hash else {}
    return entry


def refs(state: State, request: Request, repo: str) -> Response:
    found = readable(state, request, repo)
    answer = {
        "branches": _refs(found.branches, "refs/heads/"),
        "tags": _refs(found.tags, "refs/tags/"),
        "pullRequests": _refs(found.pull_requests, ""),
        "converts": [],
    }
    return json_response(answer)


def _refs(targets: dict[str, str], prefix: str) -> list[dict[str, str]]:
    return [{"name": name, "ref": prefix + name, "targetCommit": oid} for name, oid in targets.items()]


def discussion(state: State, request: Request, repo: str, number: str) -> Response:
    found = readable(state, request, repo)
    ref = f"refs/pr/{number}"
    if ref not in found.pull_requests:
        raise Refusal(404, f"there is no discussion {number}")
    commit = found.at(ref)
    about: dict[str, Any] = {"num": int(number), "title": commit.title, "createdAt": commit.date, "isPullRequest": True}
    about |= {"status": "closed" if ref in found.closed else "open", "repo": {"name": repo, "type": "model"}}
    about |= {"events": [], "changes": {"base": f"refs/heads/{MAIN}"}, "filesWithConflicts": [], "diff": ""}
    return json_response(about)


def create_branch(state: State, request: Request, repo: str, branch: str) -> Response:
    found = writable(state, request, repo)
    return _add_ref(state, found.branches, "heads", branch, found.at(request.json().get("startingPoint", MAIN)))


def create_tag(state: State, request: Request, repo: str, revision: str) -> Response:
    found = writable(state, request, repo)
    return _add_ref(state, found.tags, "tags", request.json()["tag"], found.at(revision))


def _add_ref(state: State, targets: dict[str, str], kind: str, name: str, commit: Commit) -> Response:
    with state.lock:
        if name in targets:
            raise Refusal(409, f"Reference refs/{kind}/{name} already exists")
        targets[name] = commit.oid
    return json_response({})


ROUTES = (
    Route("whoami", "GET", "/api/whoami-v2", whoami),
    Route("create-repo", "POST", "/api/repos/create", create),
    Route("validate-yaml", "POST", "/api/validate-yaml", validate_yaml),
    Route("repo-info", "GET", "/api/models/{repo}", info),
    Route("repo-info", "GET", "/api/models/{repo}/revision/{revision}", info),
    Route("tree", "GET", "/api/models/{repo}/tree/{revision}", tree),
    Route("tree", "GET", "/api/models/{repo}/tree/{revision}/{path}", tree),
    Route("refs", "GET", "/api/models/{repo}/refs", refs),
    Route("discussion", "GET", "/api/models/{repo}/discussions/{number}", discussion),
    Route("create-branch", "POST", "/api/models/{repo}/branch/{branch}", create_branch),
    Route("create-tag", "POST", "/api/models/{repo}/tag/{revision}", create_tag),
)
