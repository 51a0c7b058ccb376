"""Faults that a test asks for: each one befalls the next request of a route, once."""

from __future__ import annotations

import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Fault:
    """What happens to one request; the default is nothing.

    Attributes:
        status: Answer with this error; the request is not carried out.
        headers: Sent with that error, as in `{"Retry-After": "1"}`.
        cut_after_bytes: Close the connection after this many bytes of the body: of the request's where it has one
            (it is then not carried out), else of the answer's.
        action: Called after the request has arrived and before it is carried out.
        answered: False closes the connection after the request has been carried out, without an answer.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_after_bytes: int | None = None
    action: Callable[[], object] | None = None
    answered: bool = True


NO_FAULT = Fault()


def fail(status: int, **headers: str) -> Fault:
    """The request is refused; `Retry_After="1"` becomes the header Retry-After."""
    return Fault(status=status, headers={name.replace("_", "-"): value for name, value in headers.items()})


def cut(after_bytes: int) -> Fault:
    """The connection closes in the middle of the body that goes up, or comes down where none goes up."""
    return Fault(cut_after_bytes=after_bytes)


def slow(seconds: float) -> Fault:
    """The first byte of the answer comes late."""
    return Fault(action=lambda: time.sleep(seconds))


def first(action: Callable[[], object]) -> Fault:
    """Something else happens just before the request is carried out: a second writer's commit, a revoked token."""
    return Fault(action=action)


def lose_answer() -> Fault:
    """The request is carried out, and the client never hears of it."""
    return Fault(answered=False)


class Faults:
    """The faults that wait, by the name of the route; safe to use from the server's threads.

    Args:
        routes: Every name there is: a fault on another one would never happen, and its test would prove nothing.
    """

    def __init__(self, routes: Iterable[str]) -> None:
        self._routes = frozenset(routes)
        self._waiting: defaultdict[str, deque[Fault]] = defaultdict(deque)
        self._lock = threading.Lock()

    def add(self, route: str, fault: Fault, times: int = 1) -> None:
        """Lets a fault befall the next `times` requests of a route.

        Raises:
            ValueError: No route has that name.
        """
        if route not in self._routes:
            raise ValueError(f"no route is called {route!r}; there are {', '.join(sorted(self._routes))}")
        with self._lock:
            self._waiting[route].extend([fault] * times)

    def take(self, route: str) -> Fault:
        """Takes the next fault of a route out of the queue; NO_FAULT where none waits."""
        with self._lock:
            return self._waiting[route].popleft() if self._waiting[route] else NO_FAULT

    def clear(self) -> None:
        """Empties all queues."""
        with self._lock:
            self._waiting.clear()

    @property
    def waiting(self) -> dict[str, int]:
        """Route -> number of faults that no request has met yet: a test asserts that it is empty."""
        with self._lock:
            return {route: len(queue) for route, queue in self._waiting.items() if queue}
