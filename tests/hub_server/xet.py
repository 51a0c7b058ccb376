"""The routes of xet: short-lived tokens from the Hub, content to and from the second origin."""

from __future__ import annotations

import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .access import downloadable, readable, writable
from .state import State
from .web import Refusal, Request, Response, Route, content_response, json_response
from .xet_store import Run

OWN_HEADER = "x-local-hub"
"""Marks the requests by which the server reads its own store through hf_xet; they need no token."""


def write_token(state: State, request: Request, repo: str, revision: str) -> Response:
    (readable if "create_pr" in request.query else writable)(state, request, repo)
    return _new_token(state, "write")


def read_token(state: State, request: Request, repo: str, revision: str) -> Response:
    downloadable(state, request, repo).at(revision)
    return _new_token(state, "read")


def _new_token(state: State, scope: str) -> Response:
    """hf_xet reads the body, huggingface_hub the headers."""
    expires = int(time.time()) + state.xet_token_seconds
    with state.lock:
        token = f"xet-{scope}-{len(state.xet_tokens)}"
        state.xet_tokens[token] = expires
    headers = {"X-Xet-Cas-Url": state.storage_url, "X-Xet-Access-Token": token, "X-Xet-Token-Expiration": str(expires)}
    return json_response({"accessToken": token, "exp": expires, "casUrl": state.storage_url}, headers=headers)


def _check(state: State, request: Request, scope: str) -> None:
    """Refuses all but an unexpired token of the scope; a token of the Hub itself would be a leak."""
    token = request.token or ""
    if OWN_HEADER in request.headers:
        return
    if state.xet_tokens.get(token, 0) <= time.time():
        raise Refusal(401, "this xet token is unknown or expired")
    if scope == "write" and not token.startswith("xet-write-"):
        raise Refusal(403, "this xet token may only read")


def put_xorb(state: State, request: Request, xorb: str) -> Response:
    _check(state, request, "write")
    is_new = xorb not in state.xet.xorbs
    state.xet.xorbs[xorb] = request.body
    return json_response({"was_inserted": is_new})


def put_shard(state: State, request: Request) -> Response:
    _check(state, request, "write")
    try:
        with state.lock:
            state.xet.add_shard(request.body)
    except KeyError as error:
        raise Refusal(400, f"the shard names xorb {error}, which was not uploaded") from error
    return json_response({"result": 1})


def reconstruction(state: State, request: Request, file: str) -> Response:
    _check(state, request, "read")
    if file not in state.xet.files:
        raise Refusal(404, f"no file {file}")
    runs = list(_runs_in_range(state.xet.files[file], request.headers.get("range", "")))
    if not runs:
        raise Refusal(416, "Range not satisfiable")
    fetch: dict[str, list[dict[str, Any]]] = {}
    for _, run in runs:
        fetch.setdefault(run.xorb, []).append(_fetch_entry(state, run))
    terms = [{"hash": r.xorb, "unpacked_length": r.size, "range": {"start": r.first, "end": r.end}} for _, r in runs]
    return json_response({"offset_into_first_range": runs[0][0], "terms": terms, "fetch_info": fetch})


def _runs_in_range(runs: list[Run], asked: str) -> Iterator[tuple[int, Run]]:
    """The runs that overlap a Range header's bytes, each with how many of its bytes lie before them."""
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
    start, last = (int(found[1]), int(found[2] or 2**62)) if found else (0, 2**62)
    at = 0
    for run in runs:
        if at <= last and at + run.size > start:
            yield max(0, start - at), run
        at += run.size


def _fetch_entry(state: State, run: Run) -> dict[str, Any]:
    start, last = state.xet.byte_range(run)
    chunks = {"start": run.first, "end": run.end}
    return {"range": chunks, "url": f"{state.storage_url}/xorbs/{run.xorb}", "url_range": {"start": start, "end": last}}


def get_xorb(state: State, request: Request, xorb: str) -> Response:
    if "authorization" in request.headers:
        raise Refusal(400, "only one way to authenticate is allowed: this address is its own permission")
    return content_response(request, state.xet.xorbs[xorb], {})


def read_file(state: State, sha256: str) -> bytes:
    """The bytes of a large file that came by xet, for readers that do not speak it.

    Raises:
        KeyError: There is no such file.
    """
    import hf_xet  # late: it opens its log in the HF_HOME that it finds when imported

    xet_hash = state.xet.hashes[sha256]
    info = hf_xet.XetFileInfo(xet_hash, state.xet.size(xet_hash))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "file"
        with hf_xet.XetSession().new_file_download_group(
            endpoint=state.storage_url, custom_headers={OWN_HEADER: "1"}
        ) as group:
            group.start_download_file(info, str(path))
        return path.read_bytes()


HUB_ROUTES = (
    Route("xet-write-token", "GET", "/api/models/{repo}/xet-write-token/{revision}", write_token),
    Route("xet-read-token", "GET", "/api/models/{repo}/xet-read-token/{revision}", read_token),
)
STORAGE_ROUTES = (
    Route("xet-put-xorb", "POST", "/v1/xorbs/default/{xorb}", put_xorb),
    Route("xet-put-shard", "POST", "/v1/shards", put_shard),
    Route("xet-reconstruction", "GET", "/v1/reconstructions/{file}", reconstruction),
    Route("xet-get-xorb", "GET", "/xorbs/{xorb}", get_xorb),
)
