"""Vectors of length 1, and the cosine of those that stand for the same image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def row_cosines(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns the cosine of each row of a with that of b, (N,) of (N, D) each; NaN where one is zero or not finite."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        cosines: NDArray[np.float64] = (x * y).sum(axis=1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
    return cosines


def unit_length(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales each row of (n, D) to length 1; zero rows stay zero."""
    lengths: NDArray[np.float32] = np.linalg.norm(vectors, axis=1, keepdims=True)
    lengths[lengths == 0] = 1
    return vectors / lengths
