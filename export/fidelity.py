"""How close the vectors of a smaller graph are to those of the full one: cosines, nearest neighbours, kNN accuracy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.model.figures import Fidelity
from mixsiam_hub.training.knn import knn_accuracy
from mixsiam_hub.vectors.nearest import nearest_others

_K = 20

Floats = NDArray[np.float32]
Labels = NDArray[np.int64]


def compare(full: Floats, small: Floats, labels: Labels | None) -> Fidelity:
    """Compares a smaller graph's vectors with the full one's.

    Args:
        full: (N, D) float32, N at least 2.
        small: (N, D) float32, of the same images; one that is not finite, or zero, has cosine 0 with everything.
        labels: (N,) int64 classes, or None. Images are in random order.
    """
    cosines = (_units(full) * _units(small)).sum(axis=1)
    full, small = (_units(vectors).astype(np.float32) for vectors in (full, small))
    fidelity = Fidelity(
        images=len(full),
        mean_cosine=round(float(cosines.mean()), 7),
        min_cosine=round(float(cosines.min()), 7),
        neighbour_agreement=round(float(np.mean(_nearest_other(full) == _nearest_other(small))), 4),
    )
    if labels is None:
        return fidelity
    before, after = _knn(full, labels), _knn(small, labels)
    return replace(
        fidelity,
        knn20=round(after, 4),
        knn20_fp32=round(before, 4),
        knn20_change_points=round(100 * (after - before), 2),
    )


def _units(vectors: Floats) -> NDArray[np.float64]:
    finite = np.where(np.isfinite(vectors).all(axis=1, keepdims=True), vectors, 0).astype(np.float64)
    norms = np.linalg.norm(finite, axis=1, keepdims=True)
    units: NDArray[np.float64] = finite / np.where(norms == 0, 1, norms)
    return units


def _nearest_other(units: Floats) -> Labels:
    others: Labels = nearest_others(units, range(len(units)), 1)[0][:, 0]
    return others


def _knn(units: Floats, labels: Labels) -> float:
    half = len(units) // 2
    a, b = slice(half), slice(half, None)
    scores = [knn_accuracy(units[x], labels[x], units[y], labels[y], (_K,))[_K] for x, y in ((a, b), (b, a))]
    return float(np.mean(scores))
