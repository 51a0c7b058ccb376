"""The vectors of a folder, read one shard at a time: the same as all at once, and refused where they move meanwhile."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from shard_folders import shard_folder

pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra bulk")

from mixsiam_hub.errors import DataError
from mixsiam_hub.vectors.nearest import nearest, nearest_in_blocks
from mixsiam_hub.vectors.shards import ShardFolder
from mixsiam_hub.vectors.table import open_vectors, read_vectors

VECTORS = np.random.default_rng(0).standard_normal((23, 4)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shard_folder(tmp_path / "v", VECTORS, rows=10)


def test_it_is_what_reading_all_at_once_gives(folder: Path) -> None:
    opened, whole = open_vectors(folder), read_vectors(folder)
    assert isinstance(opened, ShardFolder)
    assert [len(block) for block in opened.blocks()] == [10, 10, 3]
    np.testing.assert_array_equal(np.concatenate(list(opened.blocks())), VECTORS)
    np.testing.assert_array_equal(whole.vectors, VECTORS)
    assert len(opened) == len(whole) == 23
    rows = [22, 0, 9, 10, 0]
    assert opened.names(rows) == whole.names(rows) == ["i22", "i0", "i9", "i10", "i0"]
    assert opened.sha256s().tolist()[7] == b"7".rjust(64, b"0")
    assert (opened.fingerprint, opened.variant, opened.model) == (whole.fingerprint, whole.variant, whole.model)


def test_an_empty_folder(tmp_path: Path) -> None:
    opened = open_vectors(shard_folder(tmp_path / "v", VECTORS[:0]))
    assert (len(opened), list(opened.blocks()), opened.names([]), len(opened.sha256s())) == (0, [], [], 0)
    assert nearest_in_blocks(VECTORS[:2], opened.blocks(), 3)[0].shape == (2, 0)


def test_the_nearest_are_found_in_one_pass_with_one_shard_in_memory(tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).standard_normal((20_000, 64)).astype(np.float32)
    opened = open_vectors(shard_folder(tmp_path / "v", vectors, rows=1000))
    tracemalloc.start()
    indices, cosines = nearest_in_blocks(vectors[:5], opened.blocks(), 4)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    expected, expected_cosines = nearest(vectors[:5], vectors, 4)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(cosines, expected_cosines, atol=1e-6)
    assert peak_bytes < vectors.nbytes / 2


def test_a_folder_that_is_written_to_meanwhile_is_refused(folder: Path, tmp_path: Path) -> None:
    opened = open_vectors(folder)
    assert opened.names([3]) == ["i3"]
    shard_folder(folder, np.concatenate([VECTORS, VECTORS[:1]]), rows=10)
    for read in (lambda: list(opened.blocks()), lambda: opened.names([22]), opened.sha256s):
        with pytest.raises(DataError, match=r"000003\.parquet was written by another run meanwhile; try again when"):
            read()
    assert opened.names([3]) == ["i3"]
    assert len(open_vectors(folder)) == 24
    os.unlink(folder / "000002.parquet")
    with pytest.raises(DataError, match=r"000002\.parquet"):
        list(opened.blocks())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_vectors_that_are_not_finite_are_damage(folder: Path, value: float) -> None:
    shard = folder / "000002.parquet"
    table = pq.read_table(shard)
    vectors = table["vector"].combine_chunks()
    numbers = vectors.flatten().to_numpy().copy()
    numbers[5] = value
    changed = type(vectors).from_arrays(numbers, vectors.type.list_size)
    pq.write_table(table.set_column(2, table.schema.field("vector"), changed), shard, compression="none")
    with pytest.raises(DataError, match=r"000002\.parquet is damaged or no shard: a vector holds NaN or infinity"):
        list(open_vectors(folder).blocks())


def test_vectors_of_another_length_are_not_read(folder: Path) -> None:
    manifest = folder / "_manifest.json"
    manifest.write_text(manifest.read_text().replace('"dim": 4', '"dim": 8'))
    with pytest.raises(DataError, match=r"its vectors have 4 numbers, not the 8 of _manifest\.json"):
        list(open_vectors(folder).blocks())
