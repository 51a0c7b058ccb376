"""Vectors as Parquet: typed columns, and what changed or hostile files meet."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow", reason="needs the extra bulk")
pq = pytest.importorskip("pyarrow.parquet", reason="needs the extra bulk")

from mixsiam_hub.errors import DataError, MissingExtraError
from mixsiam_hub.vectors.table import VectorFile, read_vectors, write_vectors

GOOD = VectorFile(np.eye(2, 4, dtype=np.float32), ["a.jpg", "b.jpg"], "ab" * 32, "v", "m")


def test_parquet_has_typed_columns_and_metadata(tmp_path: Path) -> None:
    write_vectors(tmp_path / "v.parquet", GOOD)
    schema = pq.read_schema(tmp_path / "v.parquet")
    assert schema.field("vector").type == pa.list_(pa.float32(), 4)
    assert schema.field("path").type == pa.string()
    assert schema.metadata[b"fingerprint"] == b"ab" * 32


def test_another_parquet_file(tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    pq.write_table(pa.table({"path": ["a"]}), path)
    with pytest.raises(DataError, match="it has no vector, fingerprint, variant, model, sha256, which `mixsiam embed`"):
        read_vectors(path)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("path", [1, 2], "column path is .*int64.*; it must be string"),
        ("path", [None, "a"], "is no vector file"),
        ("path", ["a", "c"], "does not fit its sha256"),
        ("vector", [1.0, 2.0], "column vector is .*double; it must be a fixed-size list of float32"),
    ],
)
def test_a_parquet_file_that_was_changed(tmp_path: Path, column: str, values: list[object], message: str) -> None:
    path = tmp_path / "v.parquet"
    write_vectors(path, VectorFile(np.ones((2, 2), np.float32), ["a", "b"], "f", "v", "m"))
    table = pq.read_table(path)
    changed = table.set_column(table.column_names.index(column), column, pa.array(values))
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(DataError, match=message):
        read_vectors(path)


def test_a_small_parquet_file_is_not_blown_up(tmp_path: Path) -> None:
    path = tmp_path / "v.parquet"
    write_vectors(path, GOOD)
    schema = pq.read_schema(path)
    zeros = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(4_000_000, np.float32)), 4)
    pq.write_table(pa.table([pa.array(["a"] * len(zeros)), zeros], schema=schema), path)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(DataError, match="1000000 vectors of 4, more than its"):
        read_vectors(path)
    names = pa.DictionaryArray.from_arrays(np.zeros(20_000, np.int32), ["n" * 100_000])  # 2 GB, written out.
    ones = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(80_000, np.float32)), 4)
    pq.write_table(pa.table([names, ones], names=["path", "vector"]).replace_schema_metadata(schema.metadata), path)
    before_bytes = pa.default_memory_pool().max_memory()
    tracemalloc.start()
    with pytest.raises(DataError, match="is no vector file"):
        read_vectors(path)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 100_000_000
    assert pa.default_memory_pool().max_memory() < before_bytes + 500_000_000


def test_parquet_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mixsiam-hub\[bulk\]'"):
        write_vectors(tmp_path / "v.parquet", GOOD)
    assert not list(tmp_path.iterdir())
