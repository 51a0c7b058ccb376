"""Untrusted files, read in one place, so that whatever is wrong with one becomes this package's error.

Every function takes `error`, the kind to raise: ModelError for a model folder, DataError for data, ImageError for an
image. A message quotes at most a line of what the file holds, without control characters: it ends on a terminal.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn

from mixsiam_hub.errors import MixsiamError, ModelError

MAX_JSON_BYTES = 64 * 2**20
MAX_JSON_DEPTH = 32
MAX_NAME_BYTES = 255
"""Of one part of a path, as file systems limit it."""
_MAX_DIGITS = 18
"""Of an integer, so that it fits into 64 bits; no file of ours counts further."""

Source = str | os.PathLike[str]
"""A file's path, or what to call it in a message."""


def one_line(value: object, limit: int = 200) -> str:
    """Returns text on one line, cut to `limit` characters, what does not print escaped."""
    text = " ".join(str(value).split())
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def quote(value: object, limit: int = 80) -> str:
    """Returns a value as Python writes it, on one line and cut to `limit` characters."""
    return one_line(repr(value), limit)


@contextmanager
def parsing(source: Source, error: type[MixsiamError] = ModelError, form: str = "") -> Iterator[None]:
    """Turns every exception of a parser into one of ours, since no list of those that it can raise is ever complete.

    Args:
        source: The file.
        error: What to raise.
        form: What the file was taken for, as in `JSON`; for the message.

    Raises:
        MixsiamError: Of kind `error`; one of ours that was raised within passes as it is.
    """
    try:
        yield
    except MixsiamError:
        raise
    except Exception as cause:
        reason = one_line(cause) or type(cause).__name__
        raise error(f"{_name(source)} cannot be read{form and f' as {form}'}: {reason}") from cause


class NotRegularError(OSError):
    """A folder, pipe, socket or device where a regular file must be; the text goes on from its name."""


def open_file(path: str | os.PathLike[str]) -> BufferedReader:
    """Opens a regular file to read; never waits, as opening a named pipe does.

    Check and read through the one handle: the path may name another file a moment later.

    Raises:
        NotRegularError: It is a folder, a pipe, a socket or a device.
        OSError: It is absent or locked.
        ValueError: Its name holds a null character.
    """
    _check_regular(os.stat(path).st_mode)  # To open a device may already set it to work.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    file = os.fdopen(os.open(path, flags), "rb")
    try:
        _check_regular(os.fstat(file.fileno()).st_mode)
    except NotRegularError:
        file.close()
        raise
    return file


def open_regular(path: Source, error: type[MixsiamError] = ModelError) -> BufferedReader:
    """Opens a regular file as `open_file`, with errors that name it.

    Raises:
        MixsiamError: Of kind `error`: it is absent, locked, a folder, a pipe or a device.
    """
    try:
        return open_file(path)
    except NotRegularError as cause:
        raise error(f"{_name(path)} {cause}") from None
    except (OSError, ValueError) as cause:
        reason = getattr(cause, "strerror", None) or one_line(cause)
        raise error(f"{_name(path)} cannot be opened: {reason}") from cause


def _check_regular(mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise NotRegularError(f"is {kind}; it must be a regular file")


def read_bytes(path: Source, limit_bytes: int | None = None, error: type[MixsiamError] = ModelError) -> bytes:
    """Reads a regular file whole.

    Args:
        path: The file.
        limit_bytes: Longer files are refused before they are read; None reads any.
        error: What to raise.

    Raises:
        MixsiamError: Of kind `error`: it cannot be opened or read, or is too long.
    """
    with open_regular(path, error) as file, parsing(path, error):
        size = os.fstat(file.fileno()).st_size
        if limit_bytes is not None and size > limit_bytes:
            raise error(f"{_name(path)} has {size} bytes; at most {limit_bytes} are read")
        return file.read(size)


def read_json(
    path: Source, error: type[MixsiamError] = ModelError, limit_bytes: int = MAX_JSON_BYTES
) -> dict[str, Any]:
    """Reads a JSON object from a file, as `parse_json`.

    Raises:
        MixsiamError: Of kind `error`: it cannot be opened, is too long, or is no such object.
    """
    return parse_json(read_bytes(path, limit_bytes, error), path, error)


def parse_json(data: bytes, source: Source, error: type[MixsiamError] = ModelError) -> dict[str, Any]:
    """Parses a JSON object in UTF-8: no NaN or Infinity, integers of 64 bits, nested at most MAX_JSON_DEPTH deep.

    Args:
        data: The file's bytes.
        source: What to call the file in errors.
        error: What to raise.

    Raises:
        MixsiamError: Of kind `error`: it is no such object.
    """
    with parsing(source, error, "JSON"):
        raw = json.loads(data.decode(), parse_constant=_not_finite, parse_float=_finite, parse_int=_short_integer)
        _check_values(raw)
    if not isinstance(raw, dict):
        raise error(f"{_name(source)} holds a {type(raw).__name__}; it must be a JSON object")
    return raw


def field(
    raw: Mapping[str, Any],
    key: str,
    kind: type | tuple[type, ...],
    source: Source,
    error: type[MixsiamError] = ModelError,
) -> Any:
    """Returns a field of a parsed file; True and False pass for `bool` only.

    Raises:
        MixsiamError: Of kind `error`: it is missing or of another type.
    """
    if key not in raw:
        raise error(f"{_name(source)}: {key} is missing")
    value = raw[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise error(f"{_name(source)}: {key} is {quote(value)}; it must be {names}")
    return value


def number(
    value: object, low: float, high: float, key: str, source: Source, error: type[MixsiamError] = ModelError
) -> float:
    """Returns a value as a float, after checking that it is a number in [low, high].

    Args:
        value: Of a parsed file, or of an array's element.
        low: Smallest allowed.
        high: Largest allowed.
        key: The field's name.
        source: What to call the file in errors.
        error: What to raise.

    Raises:
        MixsiamError: Of kind `error`: it is no number, NaN, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise error(f"{_name(source)}: {key} is {quote(value)}; it must be a number from {low:g} to {high:g}")
    return float(value)


def integer(
    value: object, low: int, high: int, key: str, source: Source, error: type[MixsiamError] = ModelError
) -> int:
    """Returns a value after checking that it is an integer in [low, high]; arguments as in `number`.

    Raises:
        MixsiamError: Of kind `error`: it is no integer, or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise error(f"{_name(source)}: {key} is {quote(value)}; it must be an integer from {low} to {high}")
    return value


def text(
    value: object, key: str, source: Source, error: type[MixsiamError] = ModelError, *, max_characters: int = 200
) -> str:
    """Returns a value after checking that it is a line of text that prints.

    Raises:
        MixsiamError: Of kind `error`: it is no text, too long, or has line breaks or other control characters.
    """
    if not isinstance(value, str) or len(value) > max_characters or not value.isprintable():
        raise error(f"{_name(source)}: {key} is {quote(value)}; it must be a line of at most {max_characters} letters")
    return value


def sha256_hex(value: object, key: str, source: Source, error: type[MixsiamError] = ModelError) -> str:
    """Returns a value after checking that it is a sha256 as it is written, 64 hex digits in lower case.

    Raises:
        MixsiamError: Of kind `error`: it is none.
    """
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
        raise error(f"{_name(source)}: {key} is {quote(value)}; it must be a sha256, 64 hex digits")
    return value


def one_of(
    value: object, allowed: tuple[object, ...], key: str, source: Source, error: type[MixsiamError] = ModelError
) -> None:
    """Checks a field of a parsed file; 32.0 is not 32.

    Raises:
        MixsiamError: Of kind `error`: it is none of the allowed values.
    """
    if not any(type(value) is type(one) and value == one for one in allowed):
        raise error(f"{_name(source)}: {key} is {quote(value)}; allowed are {', '.join(map(str, allowed))}")


def path_inside(folder: Path, name: object, source: Source, error: type[MixsiamError] = ModelError) -> Path:
    """Joins a folder with a name that a file gives, such as `onnx/model.onnx`, which cannot lead out of it.

    Args:
        folder: The folder.
        name: Relative, parts divided by `/`.
        source: The file that names it.
        error: What to raise.

    Raises:
        MixsiamError: Of kind `error`: the name is absolute, has `..`, a backslash, a drive or a control character, or
            is longer than file systems allow.
    """
    parts = name.split("/") if isinstance(name, str) and name.isprintable() and not re.search(r"[\\:]", name) else [""]
    if any(part in ("", ".", "..") or len(part.encode()) > MAX_NAME_BYTES for part in parts) or len(parts) > 8:
        raise error(f"{_name(source)}: {quote(name)} must be the path of a file inside the folder, as in onnx/name")
    return folder.joinpath(*parts)


def sha256_file(path: Source, error: type[MixsiamError] = ModelError) -> str:
    """Returns the sha256 of a regular file in hex.

    Raises:
        MixsiamError: Of kind `error`: it cannot be opened or read.
    """
    with open_regular(path, error) as file, parsing(path, error):
        return hashlib.file_digest(file, "sha256").hexdigest()


def _name(source: Source) -> str:
    return one_line(source, 4096)


def _not_finite(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is too large")
    return value


def _short_integer(digits: str) -> int:
    if len(digits.lstrip("-")) > _MAX_DIGITS:
        raise ValueError(f"an integer has {len(digits)} digits; at most {_MAX_DIGITS} are read")
    return int(digits)


def _check_values(raw: object) -> None:
    """Refuses deep nesting, on which later code would recurse, and text with half a character, which no file takes."""
    level = [raw]
    for _ in range(MAX_JSON_DEPTH + 1):
        for value in level:
            if isinstance(value, str):
                value.encode()
        level = [child for value in level for child in _children(value)]
        if not level:
            return
    raise ValueError(f"it is nested more than {MAX_JSON_DEPTH} deep")


def _children(value: object) -> list[object]:
    if isinstance(value, dict):
        return [*value, *value.values()]
    return value if isinstance(value, list) else []
