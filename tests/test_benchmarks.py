"""What benchmarks conclude from their figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.mark.parametrize("allowed", [0, 1, 20])
def test_the_threshold_is_the_lowest_thousandth_that_few_enough_pairs_reach(allowed: int) -> None:
    from duplicates import threshold

    pairs = np.sort(np.random.default_rng(0).uniform(-1, 1, 1000).astype(np.float32))
    value = threshold(pairs, allowed)
    assert (pairs >= value).sum() <= allowed < (pairs >= value - 0.001).sum()


def test_a_copy_nearer_to_another_image_is_not_found_first() -> None:
    from duplicates import look_up

    originals = np.eye(3, dtype=np.float32)
    found = look_up(np.array([[0.8, 0.6, 0], [0.8, 0.6, 0]], np.float32), originals)
    assert found.first.tolist() == [True, False]
    np.testing.assert_allclose(found.own, [0.8, 0.6], rtol=1e-6)
    np.testing.assert_allclose(found.other, [0.6, 0.8], rtol=1e-6)


def test_pairs_leave_out_an_image_with_itself() -> None:
    from duplicates import pair_cosines

    vectors = np.array([[2, 0], [0, 1], [1, 1]], np.float32)
    np.testing.assert_allclose(pair_cosines(vectors), [0, 0.5**0.5, 0.5**0.5], atol=1e-6)


def test_the_best_head_is_one_whose_int8_reaches_its_bar_on_every_set() -> None:
    from head import Row, best

    enough, off = (0.996, 0.98), (0.994, 0.98)
    rows = [
        Row(1e-3, 512, [(60, 60), (20, 20)], [enough, off]),
        Row(1e-2, 256, [(58, 58), (20, 20)], [enough, enough]),
        Row(1e-2, 64, [(50, 50), (20, 20)], [enough, enough]),
    ]
    assert best(rows) is rows[1]
    assert best(rows[:1]) is None
