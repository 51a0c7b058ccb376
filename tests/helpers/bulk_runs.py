"""What a run into a folder of shards is given, and what it has left there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow.dataset as ds

from mixsiam_hub.images.sources import Item
from mixsiam_hub.vectors.shards import ERRORS

ROWS = 5
"""Of a shard, in tests of twelve images."""


def items(paths: list[Path]) -> list[Item]:
    """Returns the files as a run takes them, named by their paths."""
    return [Item(str(path), str(path)) for path in paths]


def rows(out: Path) -> dict[str, dict[str, Any]]:
    """Returns the table, by path, as a reader finds it that knows nothing of this package."""
    found = ds.dataset(out).to_table().to_pylist()
    assert len({row["path"] for row in found}) == len(found)
    return {row["path"]: row for row in found}


def listed(out: Path) -> dict[str, str]:
    """Returns what could not be read, and why."""
    return {entry["key"]: entry["reason"] for entry in map(json.loads, (out / ERRORS).read_text().splitlines())}


def content(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Returns every file's bytes and time of change, but for the lock."""
    paths = sorted(path for path in folder.iterdir() if path.name != ".lock")
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}


def touch(path: Path) -> None:
    """Makes a file a second younger, its content the same."""
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000_000))
