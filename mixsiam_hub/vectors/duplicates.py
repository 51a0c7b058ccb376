"""Finds images that stand twice: exact copies by their files, near ones by the cosine of their vectors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.errors import ArgumentError, DataError
from mixsiam_hub.untrusted import one_line
from mixsiam_hub.vectors.search import Neighbours
from mixsiam_hub.vectors.table import Vectors

_ROWS_AT_ONCE = 2048
"""Of each side: their cosines take 16 MB."""

_Pairs = tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]
"""Rows of the one side, rows of the other, and their cosines."""


@dataclass(frozen=True)
class NearGroup:
    """Images that are near duplicates of one another.

    Attributes:
        images: Their names. Each is near to at least one of the others, not to all of them.
        least_cosine: The smallest cosine of two of them that reaches the threshold.
    """

    images: list[str]
    least_cosine: float


@dataclass(frozen=True)
class Duplicates:
    """What stands twice in one set of images.

    Attributes:
        threshold: The cosine from which two images are near duplicates.
        images: How many images there are.
        exact: Groups of images whose files are the same, byte by byte.
        near: Groups of near duplicates; of each exact group only the first image is looked at.
        least_similar: Pairs of near duplicates of smallest cosine: whether they are duplicates says whether the
            threshold is high enough.
    """

    threshold: float
    images: int
    exact: list[list[str]]
    near: list[NearGroup]
    least_similar: list[Neighbours]


@dataclass(frozen=True)
class Leak:
    """An image of one set that stands in another, too.

    Attributes:
        image: Its name.
        other: The name of the other set's image that is nearest to it.
        cosine: Of the two.
        exact: Whether their files are the same, byte by byte; then `cosine` is of that other image.
    """

    image: str
    other: str
    cosine: float
    exact: bool


@dataclass(frozen=True)
class Leaks:
    """Which images of one set, of training, say, stand in another, of tests.

    Attributes:
        threshold: The cosine from which two images are near duplicates.
        images: How many images the one set has.
        others: How many the other has.
        leaks: Those that stand in both, one entry for each image of the one set.
        least_similar: As in `Duplicates`.
    """

    threshold: float
    images: int
    others: int
    leaks: list[Leak]
    least_similar: list[Neighbours]


def find_duplicates(
    vectors: Vectors, threshold: float, *, shown: int = 12, progress: Callable[[float], object] = lambda share: None
) -> Duplicates:
    """Finds the images of a set that stand twice in it, by the cosines of all pairs.

    All vectors are held in memory, and the work grows with the square of their number.

    Args:
        vectors: The set. Exact copies are found where it holds the sha256 of the files, as a folder of shards does.
        threshold: The cosine from which two images are near duplicates, above 0 and at most 1.
        shown: How many of the least similar pairs to return.
        progress: Called with the share of the work that is done.

    Raises:
        ArgumentError: A threshold out of range.
        DataError: A damaged shard.
    """
    _check(threshold)
    units = _units(vectors)
    exact = _equal(vectors.sha256s())
    first = np.ones(len(units), bool)
    first[[row for group in exact for row in group[1:]]] = False
    rows = np.flatnonzero(first)
    joined, least = np.arange(len(rows)), np.full(len(rows), np.inf, np.float32)
    lowest = _Lowest(shown)
    for a, b, cosines in _pairs(units[rows], None, threshold, progress):
        _join(joined, a, b)
        np.minimum.at(least, a, cosines)
        lowest.add(a, b, cosines)
    near = [(group, float(least[group].min())) for group in _groups(_roots(joined, joined))]
    named = iter(vectors.names([*(row for group in exact for row in group), *(rows[i] for g, _ in near for i in g)]))
    return Duplicates(
        threshold,
        len(vectors),
        [[next(named) for _ in group] for group in exact],
        [NearGroup([next(named) for _ in group], cosine) for group, cosine in near],
        lowest.named(vectors, rows, vectors, rows),
    )


def find_leaks(
    vectors: Vectors,
    others: Vectors,
    threshold: float,
    *,
    shown: int = 12,
    progress: Callable[[float], object] = lambda share: None,
) -> Leaks:
    """Finds the images of one set that stand in another, too; arguments and errors as of `find_duplicates`.

    Raises:
        DataError: Also where the two sets are of different encoders or variants.
    """
    _check(threshold)
    for name in ("fingerprint", "variant"):
        if getattr(vectors, name) != getattr(others, name):
            found = " and ".join(one_line(getattr(side, name))[:32] for side in (vectors, others))
            raise DataError(f"the two are of {name} {found}: embed both with the same encoder and options")
    units, other_units = _units(vectors), _units(others)
    copy = _copies(vectors.sha256s(), others.sha256s())
    nearest, best = copy.copy(), np.full(len(units), -np.inf, np.float32)
    is_copy = copy >= 0
    best[is_copy] = (units[is_copy] * other_units[copy[is_copy]]).sum(axis=1)
    lowest = _Lowest(shown)
    for a, b, cosines in _pairs(units, other_units, threshold, progress):
        lowest.add(a, b, cosines)
        order = np.argsort(cosines, kind="stable")  # Of several of a row the largest is assigned last.
        a, b, cosines = a[order], b[order], cosines[order]
        better = (cosines > best[a]) & ~is_copy[a]
        nearest[a[better]], best[a[better]] = b[better], cosines[better]
    rows = np.flatnonzero(nearest >= 0)
    sides = zip(vectors.names(rows.tolist()), others.names(nearest[rows].tolist()), strict=True)
    leaks = [
        Leak(*names, min(1.0, float(best[row])), bool(is_copy[row])) for row, names in zip(rows, sides, strict=True)
    ]
    every, every_other = np.arange(len(units)), np.arange(len(other_units))
    return Leaks(threshold, len(units), len(other_units), leaks, lowest.named(vectors, every, others, every_other))


def write_report(file: BinaryIO, found: Duplicates | Leaks) -> None:
    """Writes what was found as JSON: the fields of `Duplicates` or `Leaks`."""
    file.write(json.dumps(dataclasses.asdict(found), indent=1).encode() + b"\n")


class _Lowest:
    """The pairs of smallest cosine among those that were added."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._pairs: _Pairs = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))

    def add(self, rows: NDArray[np.int64], others: NDArray[np.int64], cosines: NDArray[np.float32]) -> None:
        a, b = np.append(self._pairs[0], rows), np.append(self._pairs[1], others)
        c = np.append(self._pairs[2], cosines)
        kept = np.argsort(c, kind="stable")[: self._count]
        self._pairs = a[kept], b[kept], c[kept]

    def named(
        self, vectors: Vectors, rows: NDArray[np.int64], others: Vectors, other_rows: NDArray[np.int64]
    ) -> list[Neighbours]:
        """Returns them by name, the least similar first; `rows` and `other_rows` say which rows were compared."""
        a, b, cosines = self._pairs
        names = zip(vectors.names(rows[a].tolist()), others.names(other_rows[b].tolist()), strict=True)
        return [
            Neighbours(name, [(other, cosine)]) for (name, other), cosine in zip(names, cosines.tolist(), strict=True)
        ]


def _check(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise ArgumentError(f"threshold is {threshold}; a cosine above 0 and at most 1 is needed")


def _units(vectors: Vectors) -> NDArray[np.float32]:
    """Returns all vectors at length 1, (N, D); zero vectors stay so, and are near to nothing."""
    blocks = []
    for block in vectors.blocks():
        lengths = np.linalg.norm(block, axis=1, keepdims=True)
        blocks.append(block / np.where(lengths == 0, 1, lengths))
    return np.concatenate(blocks) if blocks else np.empty((0, 1), np.float32)


def _pairs(
    units: NDArray[np.float32],
    others: NDArray[np.float32] | None,
    threshold: float,
    progress: Callable[[float], object],
) -> Iterator[_Pairs]:
    """Yields the pairs that reach the threshold; without `others` each pair of `units` once, its first row before."""
    right = units if others is None else others
    tiles = [
        (top, left)
        for top in range(0, len(units), _ROWS_AT_ONCE)
        for left in range(top if others is None else 0, len(right), _ROWS_AT_ONCE)
    ]
    for done, (top, left) in enumerate(tiles, 1):
        cosines = units[top : top + _ROWS_AT_ONCE] @ right[left : left + _ROWS_AT_ONCE].T
        is_near = cosines >= threshold
        if others is None and top == left:
            is_near = np.triu(is_near, 1)
        a, b = np.nonzero(is_near)
        yield a + top, b + left, np.minimum(cosines[a, b], 1)
        progress(done / len(tiles))


def _join(joined: NDArray[np.int64], a: NDArray[np.int64], b: NDArray[np.int64]) -> None:
    """Puts the groups of a[i] and b[i] together, for each i. Each row of `joined` leads to a lower one of its group."""
    while len(a):
        a, b = _roots(joined, a), _roots(joined, b)
        differ = a != b
        a, b = np.minimum(a, b)[differ], np.maximum(a, b)[differ]
        np.minimum.at(joined, b, a)


def _roots(joined: NDArray[np.int64], rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Returns the lowest row of the group of each of these rows."""
    while (joined[rows] != rows).any():
        rows = joined[rows]
    return rows


def _groups(keys: NDArray[np.int64]) -> list[list[int]]:
    """Returns the rows of equal keys, of two rows at least, in the order of their first rows."""
    order = np.argsort(keys, kind="stable")
    parts = np.split(order, np.flatnonzero(keys[order][1:] != keys[order][:-1]) + 1)
    return sorted(part.tolist() for part in parts if len(part) > 1)


def _equal(sha256s: NDArray[np.bytes_]) -> list[list[int]]:
    """Returns the rows of equal sha256; those whose is not known are equal to none."""
    known = np.flatnonzero(sha256s != b"")
    _, numbers = np.unique(sha256s[known], return_inverse=True)
    return [known[group].tolist() for group in _groups(numbers)]


def _copies(sha256s: NDArray[np.bytes_], others: NDArray[np.bytes_]) -> NDArray[np.int64]:
    """Returns for each row the first of the others of the same sha256; -1 where there is none, or it is not known."""
    place = {digest: row for row, digest in reversed(list(enumerate(others.tolist()))) if digest}
    return np.array([place.get(digest, -1) for digest in sha256s.tolist()], np.int64)
