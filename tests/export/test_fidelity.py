"""The figures that say what is left of an encoder in another form of it."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs the extra export")

from mixsiam_hub.export.fidelity import compare

RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((60, 8), np.float32)
LABELS = np.arange(60) % 3


def test_equal_vectors_lose_nothing_whatever_their_length() -> None:
    fidelity = compare(VECTORS, 3 * VECTORS, LABELS)
    assert fidelity.images == 60
    assert fidelity.mean_cosine == fidelity.min_cosine == fidelity.neighbour_agreement == 1
    assert fidelity.knn20 == fidelity.knn20_fp32
    assert fidelity.knn20_change_points == 0


def test_cosines_and_neighbours_are_those_worked_out_by_hand() -> None:
    full = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
    small = full.copy()
    small[3] = [-1, 0]  # cosine -0.1 / sqrt(1.01); 2 then has 1 for its neighbour, and 3 has 2 as before
    fidelity = compare(full, small, None)
    assert fidelity.min_cosine == pytest.approx(-0.1 / np.sqrt(1.01), abs=1e-7)
    assert fidelity.mean_cosine == pytest.approx((3 - 0.1 / np.sqrt(1.01)) / 4, abs=1e-7)
    assert fidelity.neighbour_agreement == 0.75
    assert fidelity.knn20 is None


@pytest.mark.parametrize("value", [np.nan, np.inf, 0])
def test_a_vector_that_is_not_finite_or_is_zero_counts_as_lost(value: float) -> None:
    small = VECTORS.copy()
    small[7] = value
    fidelity = compare(VECTORS, small, None)
    assert fidelity.min_cosine == 0
    assert fidelity.mean_cosine == pytest.approx(59 / 60)


def test_knn_classifies_each_half_by_the_other() -> None:
    classes = np.eye(3, dtype=np.float32)[LABELS]
    fidelity = compare(classes, np.roll(classes, 30, axis=0), LABELS)
    assert fidelity.knn20_fp32 == fidelity.knn20 == 1
    swapped = classes.copy()
    swapped[30:] = np.roll(classes[30:], 1, axis=0)
    fidelity = compare(classes, swapped, LABELS)
    assert fidelity.knn20 == 0
    assert fidelity.knn20_change_points == -100
