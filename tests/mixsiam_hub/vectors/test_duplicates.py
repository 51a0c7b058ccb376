"""Duplicates and leaks against the literal definition, at the edges, and the report."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass

import numpy as np
import pytest

from mixsiam_hub.errors import ArgumentError, DataError
from mixsiam_hub.vectors import duplicates
from mixsiam_hub.vectors.duplicates import find_duplicates, find_leaks, write_report
from mixsiam_hub.vectors.table import VectorFile


@dataclass(frozen=True, eq=False)
class Hashed(VectorFile):
    """Vectors with the sha256 of their files, as a folder of shards has them."""

    hashes: tuple[str, ...] = ()

    def sha256s(self) -> np.ndarray:
        return np.array(self.hashes, "S64")


def table(vectors: np.ndarray, hashes: tuple[str, ...] = (), fingerprint: str = "ab" * 32) -> VectorFile:
    ids = [f"i{row}" for row in range(len(vectors))]
    labels = (fingerprint, "fp32-exact", "m")
    return Hashed(vectors, ids, *labels, hashes) if hashes else VectorFile(vectors, ids, *labels)


def at(*degrees: float) -> np.ndarray:
    """Vectors of many lengths in these directions."""
    angles = np.radians(np.array(degrees))
    lengths = np.arange(1, len(degrees) + 1)[:, None]
    return (np.stack([np.cos(angles), np.sin(angles)], 1) * lengths).astype(np.float32)


def groups_by_hand(vectors: np.ndarray, threshold: float) -> list[list[str]]:
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    groups = [{row} for row in range(len(units))]
    for a in range(len(units)):
        for b in range(a):
            if units[a] @ units[b] >= threshold:
                both = [group for group in groups if a in group or b in group]
                groups = [group for group in groups if group not in both] + [set().union(*both)]
    return sorted([[f"i{row}" for row in sorted(group)] for group in groups if len(group) > 1])


@pytest.mark.parametrize("rows_at_once", [1, 7, 2048])
@pytest.mark.parametrize("threshold", [0.7, 0.9, 0.99])
def test_near_groups_equal_the_literal_definition(
    rows_at_once: int, threshold: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "_ROWS_AT_ONCE", rows_at_once)
    vectors = np.random.default_rng(3).standard_normal((60, 4)).astype(np.float32)
    shares: list[float] = []
    found = find_duplicates(table(vectors), threshold, progress=shares.append)
    assert sorted(group.images for group in found.near) == groups_by_hand(vectors, threshold)
    assert found.near
    assert found.exact == []
    assert shares == sorted(shares)
    assert shares[-1] == 1


def test_a_group_is_a_chain_and_its_least_cosine_that_of_its_weakest_link() -> None:
    found = find_duplicates(table(at(0, 100, 10, 22, 180)), 0.97)  # cos 12 is 0.978, cos 22 is 0.927.
    (group,) = found.near
    assert group.images == ["i0", "i2", "i3"]
    assert group.least_cosine == pytest.approx(np.cos(np.radians(12)), abs=1e-6)
    assert [(pair.query, pair.found[0][0]) for pair in found.least_similar] == [("i2", "i3"), ("i0", "i2")]


def test_exact_copies_are_told_by_their_files_and_stand_for_one_image() -> None:
    found = find_duplicates(table(at(0, 90, 0, 1, 90), ("a", "b", "a", "c", "")), 0.999)
    assert found.exact == [["i0", "i2"]]
    assert [group.images for group in found.near] == [["i0", "i3"], ["i1", "i4"]]
    assert found.images == 5


def test_many_equal_vectors_make_one_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "_ROWS_AT_ONCE", 64)
    found = find_duplicates(table(np.ones((500, 3), np.float32)), 0.9, shown=3)
    assert [len(group.images) for group in found.near] == [500]
    assert len(found.least_similar) == 3


def test_zero_vectors_and_empty_sets_have_no_duplicates() -> None:
    assert find_duplicates(table(np.zeros((3, 2), np.float32)), 0.5).near == []
    empty = table(np.empty((0, 2), np.float32))
    assert find_duplicates(empty, 0.5).images == 0
    assert find_leaks(empty, table(at(0)), 0.5).leaks == []
    assert find_leaks(table(at(0)), empty, 0.5).leaks == []


@pytest.mark.parametrize("rows_at_once", [1, 2048])
def test_leaks_name_the_nearest_of_the_others_and_exact_copies_before_it(
    rows_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates, "_ROWS_AT_ONCE", rows_at_once)
    train, test = table(at(0, 90, 45, 200), ("a", "b", "", "d")), table(at(5, 44, 2, 300), ("x", "", "a", "b"))
    found = find_leaks(train, test, 0.99)
    seen = [(leak.image, leak.other, leak.exact) for leak in found.leaks]
    assert seen == [("i0", "i2", True), ("i1", "i3", True), ("i2", "i1", False)]
    assert found.leaks[1].cosine == pytest.approx(np.cos(np.radians(210)), abs=1e-6)
    assert found.leaks[2].cosine == pytest.approx(np.cos(np.radians(1)), abs=1e-6)
    assert (found.images, found.others) == (4, 4)
    assert (found.least_similar[0].query, found.least_similar[0].found[0][0]) == ("i0", "i0")


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(DataError, match=r"fingerprint abab\w+ and cdcd"):
        find_leaks(table(at(0)), table(at(0), fingerprint="cd" * 32), 0.9)
    for threshold in (0, -1, 1.01, float("nan")):
        with pytest.raises(ArgumentError, match="threshold is"):
            find_duplicates(table(at(0, 1)), threshold)


def test_the_report_is_json() -> None:
    file = io.BytesIO()
    write_report(file, find_duplicates(table(at(0, 1)), 0.9))
    report = json.loads(file.getvalue())
    assert report["near"][0]["images"] == ["i0", "i1"]
    assert report["least_similar"][0]["query"] == "i0"
    file = io.BytesIO()
    write_report(file, find_leaks(table(at(0)), table(at(1)), 0.9))
    assert json.loads(file.getvalue())["leaks"][0]["other"] == "i0"
