"""HTTP, and nothing of the Hub: requests, answers, routes, and an origin that serves them on a port of its own."""

from __future__ import annotations

import json
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BufferedIOBase
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from .faults import NO_FAULT, Fault, Faults

SEGMENT, REPO, REST = "[^/]+", "[^/]+/[^/]+", ".*"
FIELDS = {"repo": REPO, "path": REST}
"""Names of a route's fields that span more than one segment of the path, and what they match."""


@dataclass(frozen=True)
class Request:
    """What arrived.

    Attributes:
        query: Decoded; the last value where a key is repeated.
        headers: By lower-case name.
    """

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def token(self) -> str | None:
        """The bearer token, if any."""
        return self.headers.get("authorization", "").removeprefix("Bearer ") or None

    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body or b"{}")


@dataclass(frozen=True)
class Response:
    """What goes back. A HEAD request gets the headers of the whole body, and no body."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


class Refusal(Exception):
    """An error answer, as the Hub writes it: the message in a header and in the body, the kind in X-Error-Code."""

    def __init__(self, status: int, message: str, code: str | None = None, **more_headers: str) -> None:
        super().__init__(message)
        headers = {"X-Error-Message": message, **more_headers} | ({"X-Error-Code": code} if code else {})
        self.response = json_response({"error": message}, status, headers)


@dataclass(frozen=True)
class Route:
    """One endpoint.

    Attributes:
        name: What faults and the log call it.
        template: The path, as in `/api/models/{repo}/revision/{revision}`: {repo} spans two segments, {path} the rest.
        handler: Takes the state, the request and the template's fields (unquoted) by name.
    """

    name: str
    method: str
    template: str
    handler: Callable[..., Response]

    def match(self, method: str, path: str) -> dict[str, str] | None:
        """The fields of a path that is this route's, else None."""
        pattern = re.sub(r"{(\w+)}", lambda m: f"(?P<{m[1]}>{FIELDS.get(m[1], SEGMENT)})", self.template)
        found = re.fullmatch(pattern, path) if method == self.method else None
        return {name: unquote(value) for name, value in found.groupdict().items()} if found else None


@dataclass(frozen=True)
class Logged:
    """One line of the log: a request that was answered, or would have been but for a fault.

    Attributes:
        route: Name of the route; "" where no route is.
        status: Of the answer; 0 where the connection was closed before the request was carried out.
    """

    route: str
    method: str
    path: str
    token: str | None
    status: int


def no_such_route(state: Any, request: Request) -> Response:
    """The answer to what this server does not speak; the client takes it for an older Hub, and does without.

    Raises:
        Refusal: Always.
    """
    raise Refusal(404, f"no route for {request.method} {request.path}")


NO_ROUTE = Route("", "", "", no_such_route)


def json_response(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An answer in JSON."""
    return Response(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


def content_response(request: Request, data: bytes, headers: Mapping[str, str]) -> Response:
    """A file, or the range of it that was asked for.

    Raises:
        Refusal: 416, the range starts beyond the end.
    """
    headers = {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream", **headers}
    asked = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
    if not asked:
        return Response(200, data, headers)
    start, last = int(asked[1]), min(int(asked[2] or len(data) - 1), len(data) - 1)
    if start > last:
        raise Refusal(416, "Range not satisfiable", **{"Content-Range": f"bytes */{len(data)}"})
    return Response(206, data[start : last + 1], {**headers, "Content-Range": f"bytes {start}-{last}/{len(data)}"})


class Origin(ThreadingHTTPServer):
    """A scheme, host and port: serves its routes from construction until `close`.

    Args:
        state: Handed to every handler.
        log: Grows by one line a request.
        own_header: Requests that carry it come from the server itself: they meet no fault and are not logged.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, state: Any, routes: Sequence[Route], faults: Faults, log: list[Logged], own_header: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.state, self.routes, self.faults, self.log, self.own_header = state, routes, faults, log, own_header
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    @property
    def url(self) -> str:
        """Without a slash at the end."""
        return f"http://127.0.0.1:{self.server_port}"

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]]:
        """The route of a path and its fields; NO_ROUTE where none fits."""
        for route in self.routes:
            fields = route.match(method, path)
            if fields is not None:
                return route, fields
        return NO_ROUTE, {}

    def handle_error(self, request: object, client_address: object) -> None:
        """Prints a handler's failure, but not that a client hung up, which faults make clients do."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def close(self) -> None:
        """Stops serving and frees the port."""
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Origin
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every small answer waits 40 ms for the client's acknowledgement
    wbufsize = -1

    def serve(self) -> None:
        url = urlsplit(self.path)
        route, fields = self.server.find(self.command, url.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        is_own = self.server.own_header in headers
        fault = NO_FAULT if is_own else self.server.faults.take(route.name)
        body = read_body(self.rfile, headers, fault.cut_after_bytes)
        request = Request(self.command, url.path, dict(parse_qsl(url.query)), headers, body or b"")
        response = None if body is None else carry_out(self.server.state, route, fields, request, fault)
        if not is_own:
            status = response.status if response else 0
            self.server.log.append(Logged(route.name, self.command, self.path, request.token, status))
        if response and fault.answered:
            self.send(response, fault.cut_after_bytes)
        else:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = serve

    def send(self, response: Response, cut_after_bytes: int | None) -> None:
        self.send_response(response.status)
        for name, value in {**response.headers, "Content-Length": str(len(response.body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(response.body[:cut_after_bytes])
        self.wfile.flush()
        self.close_connection |= cut_after_bytes is not None

    def log_message(self, format: str, *args: object) -> None:
        """Silent: the log is `Origin.log`."""


def carry_out(state: Any, route: Route, fields: Mapping[str, str], request: Request, fault: Fault) -> Response:
    """The answer to a request: the fault's, the route's, or a refusal."""
    if fault.action:
        fault.action()
    if fault.status is not None:
        return json_response({"error": "a fault of the test"}, fault.status, fault.headers)
    try:
        return route.handler(state, request, **fields)
    except Refusal as refusal:
        return refusal.response


def read_body(stream: BufferedIOBase, headers: Mapping[str, str], limit: int | None) -> bytes | None:
    """The request's body, of known length or chunked; None where it has one and `limit` bytes of it were enough."""
    length = int(headers.get("content-length", 0))
    chunked = headers.get("transfer-encoding", "").lower() == "chunked"
    if limit is not None and (chunked or length):
        stream.read(min(limit, length))
        return None
    return b"".join(iter(lambda: _read_chunk(stream), b"")) if chunked else stream.read(length)


def _read_chunk(stream: BufferedIOBase) -> bytes:
    data = stream.read(int(stream.readline().split(b";")[0], 16))
    stream.readline()
    return data
