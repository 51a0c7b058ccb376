"""Files, down and up by plain HTTP: the Hub's `resolve`, and LFS on the second origin."""

from __future__ import annotations

import hashlib
from typing import Any

from . import xet
from .access import downloadable, readable, writable
from .state import File, State
from .web import Refusal, Request, Response, Route, content_response, json_response


def resolve(state: State, request: Request, repo: str, revision: str, path: str) -> Response:
    commit = downloadable(state, request, repo).at(revision)
    headers = {"X-Repo-Commit": commit.oid}
    file = commit.files.get(path)
    if file is None:
        raise Refusal(404, "Entry not found", "EntryNotFound", **headers)
    if file.content is not None:
        return content_response(request, file.content, {**headers, "ETag": f'"{file.etag}"'})
    return Response(302, headers={**headers, **_large_file_headers(state, repo, commit.oid, file)})


def _large_file_headers(state: State, repo: str, commit: str, file: File) -> dict[str, str]:
    """Where a large file is: a second origin's address and, if xet has it, what to ask xet for."""
    headers = {"Location": f"{state.storage_url}/objects/{file.sha256}"}
    headers |= {"X-Linked-Etag": f'"{file.etag}"', "X-Linked-Size": str(file.size)}
    xet_hash = state.xet.hash_of(file.etag)
    if xet_hash:
        headers["X-Xet-Hash"] = xet_hash
        headers["Link"] = f'<{state.url}/api/models/{repo}/xet-read-token/{commit}>; rel="xet-auth"'
    return headers


def lfs_batch(state: State, request: Request, repo: str) -> Response:
    asked = request.json()
    (writable if "ref" in asked else readable)(state, request, repo)  # the client names no ref for a pull request
    objects = [_lfs_object(state, repo, item["oid"], item["size"]) for item in asked["objects"]]
    return json_response({"transfer": "basic", "objects": objects})


def _lfs_object(state: State, repo: str, sha256: str, size: int) -> dict[str, Any]:
    """Without actions where the content is here already."""
    if state.stored_size(sha256) is not None:
        return {"oid": sha256, "size": size}
    verify = f"{state.url}/{repo}.git/info/lfs/objects/verify"
    actions = {"upload": {"href": f"{state.storage_url}/objects/{sha256}"}, "verify": {"href": verify}}
    return {"oid": sha256, "size": size, "actions": actions}


def lfs_verify(state: State, request: Request, repo: str) -> Response:
    readable(state, request, repo)
    asked = request.json()
    if state.stored_size(asked["oid"]) != asked["size"]:
        raise Refusal(404, "the object has not arrived whole")
    return json_response({})


def put_object(state: State, request: Request, sha256: str) -> Response:
    _refuse_token(request)
    if hashlib.sha256(request.body).hexdigest() != sha256:
        raise Refusal(400, "the content is not what its name says")
    state.objects[sha256] = request.body
    return Response(headers={"ETag": f'"{sha256}"'})


def get_object(state: State, request: Request, sha256: str) -> Response:
    _refuse_token(request)
    return content_response(request, stored(state, sha256), {"ETag": f'"{sha256}"'})


def stored(state: State, sha256: str) -> bytes:
    """The bytes of a large file, however it came.

    Raises:
        KeyError: There is no such file.
    """
    if sha256 not in state.objects:
        state.objects[sha256] = xet.read_file(state, sha256)
    return state.objects[sha256]


def _refuse_token(request: Request) -> None:
    """As storage behind signed addresses does; and a token sent here has leaked to another origin."""
    if "authorization" in request.headers:
        raise Refusal(400, "only one way to authenticate is allowed: this address is its own permission")


HUB_ROUTES = (
    Route("resolve-head", "HEAD", "/{repo}/resolve/{revision}/{path}", resolve),
    Route("resolve", "GET", "/{repo}/resolve/{revision}/{path}", resolve),
    Route("lfs-batch", "POST", "/{repo}.git/info/lfs/objects/batch", lfs_batch),
    Route("lfs-verify", "POST", "/{repo}.git/info/lfs/objects/verify", lfs_verify),
)
STORAGE_ROUTES = (
    Route("put-object", "PUT", "/objects/{sha256}", put_object),
    Route("get-object", "GET", "/objects/{sha256}", get_object),
)
