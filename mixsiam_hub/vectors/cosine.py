"""The cosine of vectors that stand for the same image."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def row_cosines(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """Returns the cosine of each row of a with that of b, (N,) of (N, D) each; NaN where one is zero or not finite."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        cosines: NDArray[np.float64] = (x * y).sum(axis=1) / (np.linalg.norm(x, axis=1) * np.linalg.norm(y, axis=1))
    return cosines
