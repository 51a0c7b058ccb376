"""Arrays are kept by what determines them, those used last longest, and what is damaged counts as absent."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from mixsiam_hub.user_cache import ArrayCache


def test_what_was_used_last_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, features = ArrayCache(tmp_path), np.zeros((10, 10), np.float32)
    monkeypatch.setattr("mixsiam_hub.user_cache.MAX_BYTES", 1600)  # Two of 400 bytes, and what npz adds to each.
    cache.put({"features": features}, "a")
    cache.put({"features": features + 1}, "b")
    for seconds, key in enumerate("ab"):
        os.utime(cache._path(key), (seconds, seconds))
    assert cache.get("a") is not None
    cache.put({"features": features + 2}, "c")
    assert cache.get("b") is None
    for key, value in [("a", 0), ("c", 2)]:
        np.testing.assert_array_equal(cache.get(key)["features"], features + value)


@pytest.mark.parametrize("damage", [lambda data: data[:100], lambda data: b"", lambda data: b"x" + data[1:]])
def test_what_is_damaged_or_no_array_is_absent(damage: object, tmp_path: Path) -> None:
    cache = ArrayCache(tmp_path)
    cache.put({"a": np.arange(99)}, "key", "more")
    path = cache._path("key", "more")
    path.write_bytes(damage(path.read_bytes()))
    assert cache.get("key", "more") is None


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = ArrayCache(tmp_path / "file")
    cache.put({"a": np.arange(3)}, "key")
    assert cache.get("key") is None
