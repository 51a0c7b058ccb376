"""The fields of a JSON object, read strictly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from mixsiam_hub import untrusted
from mixsiam_hub.errors import MixsiamError

MOST = 10**12
"""Of anything that is counted."""
LONGEST = 4096
"""Characters of a text: a command line, say, or the name of a data set."""

_Value = TypeVar("_Value")
Read = Callable[[object, str, type[MixsiamError]], _Value]
"""Reads a nested value: parsed JSON, what to call it in errors, what to raise."""


class Fields:
    """Hands out each field once, checked; `end` refuses those that nobody asked for.

    Every method raises the given kind of error where the field is missing, of another type or out of its range.
    """

    def __init__(self, raw: object, source: str, error: type[MixsiamError]) -> None:
        """Takes a parsed object.

        Args:
            raw: What was parsed.
            source: What to call it in errors: the file, and the place in it.
            error: What to raise.

        Raises:
            MixsiamError: Of kind `error`: it is no JSON object.
        """
        self._left = dict(_object(raw, source, error))
        self._source = source
        self._error = error

    def end(self) -> None:
        """Refuses unknown keys."""
        if self._left:
            raise self._error(f"{self._source}: unknown key {untrusted.quote(min(self._left))}")

    def optional(self, key: str, read: Callable[[str], _Value]) -> _Value | None:
        """Returns what `read` does of a key, or None where the key is missing or null."""
        if self._left.get(key) is None:
            self._left.pop(key, None)
            return None
        return read(key)

    def number(self, key: str, low: float, high: float) -> float:
        """Returns a number in [low, high]."""
        return untrusted.number(self._take(key), low, high, key, self._source, self._error)

    def count(self, key: str) -> int:
        """Returns an integer from 0 to MOST."""
        return untrusted.integer(self._take(key), 0, MOST, key, self._source, self._error)

    def text(self, key: str) -> str:
        """Returns a line of at most LONGEST characters."""
        return untrusted.text(self._take(key), key, self._source, self._error, max_characters=LONGEST)

    def sha256(self, key: str) -> str:
        """Returns a sha256 in hex."""
        return untrusted.sha256_hex(self._take(key), key, self._source, self._error)

    def flag(self, key: str) -> bool:
        """Returns true or false."""
        value = self._take(key)
        untrusted.one_of(value, (True, False), key, self._source, self._error)
        return bool(value)

    def nested(self, key: str, read: Read[_Value]) -> _Value:
        """Returns what `read` makes of a value."""
        return read(self._take(key), f"{self._source}: {key}", self._error)

    def mapping(self, key: str, read: Read[_Value]) -> dict[str, _Value]:
        """Returns an object whose values are each read by `read`."""
        where = f"{self._source}: {key}"
        raw = _object(self._take(key), where, self._error)
        names = [untrusted.text(name, "a name", where, self._error) for name in raw]
        return {name: read(raw[name], f"{where}.{name}", self._error) for name in names}

    def items(self, key: str, read: Read[_Value]) -> tuple[_Value, ...]:
        """Returns a list whose entries are each read by `read`."""
        raw = self._take(key)
        where = f"{self._source}: {key}"
        if not isinstance(raw, list):
            raise self._error(f"{where} is {untrusted.quote(raw)}; it must be a list")
        return tuple(read(entry, f"{where}.{place}", self._error) for place, entry in enumerate(raw))

    def _take(self, key: str) -> object:
        if key not in self._left:
            raise self._error(f"{self._source}: {key} is missing")
        return self._left.pop(key)


def _object(raw: object, source: str, error: type[MixsiamError]) -> Mapping[str, object]:
    if not isinstance(raw, Mapping):
        raise error(f"{source} is {untrusted.quote(raw)}; it must be a JSON object")
    return raw
