"""Exact nearest neighbours by cosine."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.errors import DataError

_SCORES_AT_ONCE = 1 << 24
"""Cosines held in memory at a time: 64 MB."""


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
        scores = np.clip(units[start : start + step] @ vectors.T / norms, -1, 1)
        scores[:, skipped] = -np.inf
        for row, values in enumerate(scores, start):
            indices[row] = _top(values, k)
            cosines[row] = values[indices[row]]
    return indices, cosines


def _norms(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lengths of the rows; 1 for a zero row, so that dividing by it gives 0."""
    norms: NDArray[np.float32] = np.linalg.norm(vectors, axis=1).astype(np.float32)
    norms[norms == 0] = 1
    return norms


def _top(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Indices of the k largest, best first; `argpartition` alone would pick any of the values that tie for place k."""
    kth = np.partition(scores, -k)[-k]
    best: NDArray[np.int64] = np.flatnonzero(scores >= kth)
    return best[np.argsort(-scores[best], kind="stable")[:k]]
