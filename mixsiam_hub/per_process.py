"""Values that belong to one process: a session's threads do not survive a fork."""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any, Generic, TypeVar

_T = TypeVar("_T")
_living: weakref.WeakSet[PerProcess[Any]] = weakref.WeakSet()
_inherited: list[Any] = []
"""The parents' values, kept for as long as a child lives: freeing a session joins threads that only the parent has."""


class PerProcess(Generic[_T]):
    """A value made on first use, once, however many threads ask for it, and made again in a forked child."""

    def __init__(self, make: Callable[[], _T]) -> None:
        """Takes what makes the value, and calls it later."""
        self._make = make
        self._value: _T | None = None
        self._lock = threading.Lock()
        _living.add(self)
        _watch_forks()

    def get(self) -> _T:
        """Returns this process's value."""
        with self._lock:
            if self._value is None:
                self._value = self._make()
            return self._value

    def forget(self) -> None:
        """Sets the parent's value aside in a forked child, and its lock, which another thread may have held."""
        _inherited.append(self._value)
        self._value = None
        self._lock = threading.Lock()


@functools.cache
def _watch_forks() -> None:
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget_all)


def _forget_all() -> None:
    for holder in list(_living):
        holder.forget()
