"""The approximate index of a folder: what it finds, and when it is built anew."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from shard_folders import shard_folder

pytest.importorskip("pyarrow", reason="needs the extra bulk")
pytest.importorskip("usearch", reason="needs the extra index")

from mixsiam_hub.errors import DataError, MissingExtraError
from mixsiam_hub.vectors.index import build_index, open_index
from mixsiam_hub.vectors.nearest import nearest
from mixsiam_hub.vectors.shards import ShardFolder

VECTORS = np.random.default_rng(0).standard_normal((900, 16)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return shard_folder(tmp_path / "v", VECTORS, rows=400)


def test_it_finds_nearly_what_the_exact_search_finds(folder: Path) -> None:
    assert open_index(ShardFolder.open(folder)) is None
    shares: list[float] = []
    built = build_index(ShardFolder.open(folder), progress=shares.append)
    assert shares == [pytest.approx(400 / 900), pytest.approx(800 / 900), 1]
    opened = open_index(ShardFolder.open(folder))
    assert opened is not None
    queries = np.random.default_rng(1).standard_normal((50, 16)).astype(np.float32)
    rows, cosines = opened.nearest(queries, 10)
    exact, _ = nearest(queries, VECTORS, 10)
    assert (rows.shape, rows.dtype, cosines.dtype) == ((50, 10), np.int64, np.float32)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(rows.tolist(), exact.tolist(), strict=True)])
    assert recall > 0.9
    units, bank = (part / np.linalg.norm(part, axis=1, keepdims=True) for part in (queries, VECTORS))
    np.testing.assert_allclose(cosines, np.einsum("qd,qkd->qk", units, bank[rows]), atol=0.01)
    assert (np.diff(cosines, axis=1) <= 0).all()
    assert opened.recall == built.recall > 0.9
    assert opened.nearest(queries[:1], 1)[0].shape == (1, 1)


def test_more_neighbours_than_vectors(tmp_path: Path) -> None:
    index = build_index(ShardFolder.open(shard_folder(tmp_path / "v", VECTORS[:3])))
    assert sorted(index.nearest(VECTORS[:1], 10)[0][0].tolist()) == [0, 1, 2]
    assert index.recall == 1


def test_other_shards_or_another_graph_need_another_index(folder: Path) -> None:
    build_index(ShardFolder.open(folder))
    shard_folder(folder, np.concatenate([VECTORS, VECTORS[:1]]), rows=400)
    assert open_index(ShardFolder.open(folder)) is None
    build_index(ShardFolder.open(folder))
    assert open_index(ShardFolder.open(folder)) is not None
    facts = json.loads((folder / "_index.json").read_text())
    (folder / "_index.json").write_text(json.dumps(facts | {"format_version": 2}))
    assert open_index(ShardFolder.open(folder)) is None
    (folder / "_index.json").write_text(json.dumps(facts))
    (folder / "_index.usearch").unlink()
    assert open_index(ShardFolder.open(folder)) is None
    (folder / "_index.usearch").write_bytes(b"another")
    assert open_index(ShardFolder.open(folder)) is None


def test_an_empty_folder_has_no_index(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no vectors yet"):
        build_index(ShardFolder.open(shard_folder(tmp_path / "v", VECTORS[:0])))


def test_without_its_package(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mixsiam-hub\[index\]'"):
        build_index(ShardFolder.open(folder))
