"""Weighted nearest-neighbour classification of frozen features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.vectors.nearest import nearest

TEMPERATURE = 0.1


def knn_accuracy(
    bank: NDArray[np.float32],
    bank_labels: NDArray[np.int64],
    queries: NDArray[np.float32],
    labels: NDArray[np.int64],
    ks: Sequence[int] = (20, 200),
) -> dict[int, float]:
    """Classifies each query by its k nearest bank features, votes weighted by exp(cosine / 0.1).

    Args:
        bank: (M, D) features of the training images.
        bank_labels: (M,) their classes, from 0.
        queries: (N, D) features of the test images.
        labels: (N,) their classes.
        ks: Numbers of neighbours; more than M counts as M.

    Returns:
        Accuracy in [0, 1] for each k.
    """
    indices, cosines = nearest(queries, bank, max(ks))
    votes = np.exp(cosines / TEMPERATURE)  # (N, max(ks))
    classes = bank_labels[indices]  # (N, max(ks))
    n_classes = int(max(bank_labels.max(), labels.max())) + 1
    result = {}
    for k in ks:
        scores = np.zeros((len(queries), n_classes))
        np.add.at(scores, (np.arange(len(queries))[:, None], classes[:, :k]), votes[:, :k])
        result[k] = float((scores.argmax(axis=1) == labels).mean())  # (N, classes) -> (N,) -> scalar
    return result
