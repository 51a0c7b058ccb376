"""Untrusted files, read in one place, so that whatever is wrong with one becomes this package's error."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixsiam_hub.errors import ModelError
from mixsiam_hub.model.files import CONFIG_FILE, MANIFEST_FILE


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        ModelError: The file is absent, or is no JSON object.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path} is missing; a model folder has {CONFIG_FILE} and {MANIFEST_FILE}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(raw, dict):
        raise ModelError(f"{path} holds a {type(raw).__name__}; it must be a JSON object")
    return raw


def sha256_file(path: Path) -> str:
    """Returns the sha256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_int(value: object) -> bool:
    """Tells an integer from True and False, which Python counts among them."""
    return isinstance(value, int) and not isinstance(value, bool)


def field(raw: Mapping[str, Any], key: str, kind: type | tuple[type, ...], source: str) -> Any:
    """Returns a field of a parsed file.

    Raises:
        ModelError: It is missing or of another type.
    """
    if key not in raw:
        raise ModelError(f"{source}: {key} is missing")
    value = raw[key]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        names = " or ".join(k.__name__ for k in (kind if isinstance(kind, tuple) else (kind,)))
        raise ModelError(f"{source}: {key} is {value!r}; it must be {names}")
    return value


def one_of(value: object, allowed: tuple[object, ...], key: str, source: str) -> None:
    """Checks a field of a parsed file.

    Raises:
        ModelError: It is none of the allowed values.
    """
    if value not in allowed:
        raise ModelError(f"{source}: {key} is {value!r}; allowed are {', '.join(map(str, allowed))}")
