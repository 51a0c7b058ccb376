"""Nearest neighbours against the literal definition, and at the edges."""

from __future__ import annotations

import numpy as np
import pytest

from mixsiam_hub.errors import DataError
from mixsiam_hub.vectors import nearest as neighbours
from mixsiam_hub.vectors.nearest import nearest, nearest_in_blocks


def random(n: int, dim: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, dim)).astype(np.float32)


@pytest.mark.parametrize("scores_at_once", [1, 100, 1 << 24])
def test_equals_the_literal_definition(scores_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_SCORES_AT_ONCE", scores_at_once)
    queries, vectors = random(7, seed=1), random(40) * np.arange(1, 41, dtype=np.float32)[:, None]
    indices, cosines = nearest(queries, vectors, 5)
    assert (indices.dtype, cosines.dtype) == (np.int64, np.float32)
    for q, query in enumerate(queries):
        expected = [float(query @ v / np.sqrt((query @ query) * (v @ v))) for v in vectors]
        order = sorted(range(40), key=lambda i: -expected[i])[:5]
        assert indices[q].tolist() == order
        np.testing.assert_allclose(cosines[q], [expected[i] for i in order], atol=1e-6)


def test_ties_go_to_the_lower_index_even_at_the_last_place() -> None:
    vectors = np.array([[0, 1], [1, 0], [2, 0], [0, 3], [4, 0], [1, 0]], np.float32)
    for k, expected in [(1, [1]), (2, [1, 2]), (3, [1, 2, 4]), (5, [1, 2, 4, 5, 0])]:
        indices, cosines = nearest(np.array([[1, 0]], np.float32), vectors, k)
        assert indices[0].tolist() == expected
        assert cosines[0, 0] == 1


def test_skipped_rows_never_match() -> None:
    vectors = random(6)
    vectors[[0, 3]] = np.nan
    vectors[4, 2] = np.nan
    indices, cosines = nearest(vectors[[1, 2]], vectors, 6)
    assert indices.shape == (2, 3)
    assert set(indices.ravel()) == {1, 2, 5}
    assert np.isfinite(cosines).all()
    assert indices[:, 0].tolist() == [1, 2]


def test_zero_vectors_score_zero() -> None:
    vectors = np.array([[0, 0], [-1, 0], [1, 1]], np.float32)
    indices, cosines = nearest(np.array([[1, 0], [0, 0]], np.float32), vectors, 3)
    assert indices.tolist() == [[2, 0, 1], [0, 1, 2]]
    np.testing.assert_allclose(cosines, [[2**-0.5, 0, -1], [0, 0, 0]], atol=1e-6)


def test_cosines_stay_within_one() -> None:
    vectors = random(200, 97)
    cosines = nearest(vectors, vectors, 1)[1]
    assert cosines.max() <= 1
    assert cosines.min() > 0.99999


@pytest.mark.parametrize(("q", "n", "k", "expected"), [(0, 5, 2, (0, 2)), (3, 0, 2, (3, 0)), (2, 4, 9, (2, 4))])
def test_sizes(q: int, n: int, k: int, expected: tuple[int, int]) -> None:
    indices, cosines = nearest(random(q), random(n), k)
    assert indices.shape == cosines.shape == expected


def test_arguments_are_checked() -> None:
    with pytest.raises(DataError, match=r"\(2, 3\), vectors \(4, 5\)"):
        nearest(random(2, 3), random(4, 5), 1)
    with pytest.raises(DataError, match="k is 0"):
        nearest(random(2), random(4), 0)
    with pytest.raises(DataError, match="a query holds NaN"):
        nearest(np.full((1, 6), np.nan, np.float32), random(4), 1)


@pytest.mark.parametrize("k", [1, 4, 100])
def test_blocks_give_what_the_whole_gives(k: int) -> None:
    queries, vectors = random(5, seed=1), random(40)
    vectors[31], vectors[7] = vectors[3], np.nan  # Equal vectors in two blocks, and a skipped one.
    blocks = iter([vectors[:10], vectors[10:10], vectors[10:38], vectors[38:]])
    indices, cosines = nearest_in_blocks(queries, blocks, k)
    expected, expected_cosines = nearest(queries, vectors, k)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(cosines, expected_cosines, atol=1e-6)
