"""Exact nearest neighbours by cosine, among arrays of vectors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.errors import DataError

_SCORES_AT_ONCE = 1 << 24
"""Cosines held in memory at a time: 64 MB."""
_RUN = 64
"""Scores of which only the largest is looked at first."""


def nearest(
    queries: NDArray[np.float32], vectors: NDArray[np.float32], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Finds the k vectors of largest cosine for each query; neither side need be normalised.

    Args:
        queries: (Q, D), finite.
        vectors: (N, D). Rows that hold NaN (skipped images) never match; a zero vector has cosine 0 with everything.
        k: Neighbours a query, at least 1; clipped to the number of rows without NaN.

    Returns:
        Indices into `vectors`, (Q, k) int64, and cosines, (Q, k) float32 in [-1, 1], best first; of equal cosines the
        lower index first.

    Raises:
        DataError: Shapes that do not fit, a query that holds NaN, or k below 1.
    """
    if queries.ndim != 2 or vectors.ndim != 2 or queries.shape[1] != vectors.shape[1]:
        raise DataError(
            f"queries are {queries.shape}, vectors {vectors.shape}; they must be (Q, D) and (N, D), D the same"
        )
    if k < 1:
        raise DataError(f"k is {k}; it must be at least 1")
    if not np.isfinite(queries).all():
        raise DataError("a query holds NaN: leave out the images that could not be read")
    norms = _norms(vectors)
    skipped = ~np.isfinite(norms)
    k = min(k, len(vectors) - int(skipped.sum()))
    indices = np.empty((len(queries), k), np.int64)
    cosines = np.empty((len(queries), k), np.float32)
    units = queries / _norms(queries)[:, None]
    step = max(1, _SCORES_AT_ONCE // max(1, len(vectors)))
    for start in range(0, len(queries) if k else 0, step):
        scores = units[start : start + step] @ vectors.T
        scores /= norms
        np.clip(scores, -1, 1, out=scores)
        scores[:, skipped] = -np.inf
        for row, values in enumerate(scores, start):
            indices[row] = _top(values, k)
            cosines[row] = values[indices[row]]
    return indices, cosines


def nearest_in_blocks(
    queries: NDArray[np.float32], blocks: Iterable[NDArray[np.float32]], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Finds the k nearest as `nearest` does, in one pass over vectors that come a block at a time.

    Args:
        queries: (Q, D), finite.
        blocks: The vectors in order, (N_i, D) each; no more than one is held.
        k: Neighbours a query, at least 1; clipped to what there is.

    Returns:
        Indices into all blocks behind one another, (Q, k) int64, and cosines, (Q, k) float32, as `nearest`.

    Raises:
        DataError: As `nearest`.
    """
    indices, cosines = np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
    first = 0
    for block in blocks:
        found, found_cosines = nearest(queries, block, k)
        indices, cosines = np.hstack([indices, found + first]), np.hstack([cosines, found_cosines])
        # Stable: of equal cosines the one that came first, which has the lower index.
        order = np.argsort(-cosines, axis=1, kind="stable")[:, :k]
        indices, cosines = np.take_along_axis(indices, order, 1), np.take_along_axis(cosines, order, 1)
        first += len(block)
    return indices, cosines


def nearest_others(
    vectors: NDArray[np.float32], rows: Sequence[int], k: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Finds the k nearest other vectors of some of the vectors, as `nearest` does.

    Args:
        vectors: (N, D), the chosen rows finite.
        rows: Which of them to look from, Q in all.
        k: Neighbours of each, at least 1; clipped to what there is.

    Returns:
        Indices into `vectors`, (Q, k) int64, and cosines, (Q, k) float32, best first.

    Raises:
        DataError: As `nearest`.
    """
    indices, cosines = nearest(vectors[list(rows)], vectors, k + 1)
    is_itself = indices == np.array(rows, np.int64).reshape(-1, 1)
    # Among many equal vectors a row need not find itself: then its last neighbour goes.
    is_itself[~is_itself.any(axis=1), -1:] = True
    others = indices[~is_itself].reshape(len(indices), -1), cosines[~is_itself].reshape(len(indices), -1)
    return others


def all_finite(vectors: NDArray[np.float32]) -> bool:
    """Tells whether (N, D) vectors hold neither NaN nor infinity; both pass them on, and take no memory."""
    return bool(np.isfinite([vectors.min(initial=0), vectors.max(initial=0)]).all())


def _norms(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lengths of the rows; 1 for a zero row, so that dividing by it gives 0."""
    norms: NDArray[np.float32] = np.linalg.norm(vectors, axis=1).astype(np.float32)
    norms[norms == 0] = 1
    return norms


def _top(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Indices of the k largest, best first; `argpartition` alone would pick any of the values that tie for place k.

    The k-th largest of the maxima of short runs of scores is no larger than the k-th largest score: what is smaller is
    passed over, and few are left to be sorted.
    """
    width = max(1, min(_RUN, len(scores) // (4 * k)))
    maxima = scores[: len(scores) // width * width].reshape(-1, width).max(axis=1)
    best: NDArray[np.int64] = np.flatnonzero(scores >= np.partition(maxima, -k)[-k])
    return best[np.argsort(-scores[best], kind="stable")[:k]]
