"""An approximate index beside a folder of shards, by usearch: for many queries among millions of vectors.

    DIR/_index.usearch   the graph, with the vectors as float16; searched where it lies, without reading it whole
    DIR/_index.json      which shards it was built from, and its recall

It is a second file of the vectors, never the first: where the shards change it is built anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.atomic import replacing, write_text
from mixsiam_hub.errors import DataError, missing_extra
from mixsiam_hub.untrusted import field, read_json
from mixsiam_hub.vectors.nearest import nearest_in_blocks
from mixsiam_hub.vectors.place import LocalPlace
from mixsiam_hub.vectors.shards import ShardFolder

GRAPH = "_index.usearch"
FACTS = "_index.json"
FORMAT_VERSION = 1
RECALL_QUERIES = 200
RECALL_K = 10


class VectorIndex:
    """An index that was opened.

    Attributes:
        recall: The share of the RECALL_K exact nearest that it finds, for RECALL_QUERIES of its own vectors, each of
            which finds itself too.
    """

    def __init__(self, folder: Path, recall: float) -> None:
        """Opens the graph of a folder; `open_index` and `build_index` call it."""
        self.recall = recall
        self._graph = _usearch().Index.restore(folder / GRAPH, view=True)
        if self._graph is None:
            raise DataError(f"{folder / GRAPH} is no index; remove it, and `mixsiam search --index` builds it anew")

    def nearest(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Finds the k nearest of (Q, D) queries, nearly always: rows and cosines, (Q, k), best first."""
        return _nearest(self._graph, queries, k)


def open_index(folder: ShardFolder) -> VectorIndex | None:
    """Opens the index of a folder; None where it has none, or one of other shards than it has now.

    Raises:
        DataError: A damaged one, or a folder that is far away.
        MissingExtraError: usearch is not installed.
    """
    _usearch()
    path = _local(folder) / FACTS
    if not path.exists():
        return None
    facts = read_json(path, DataError)
    if (facts.get("format_version"), facts.get("built_from")) != (FORMAT_VERSION, _built_from(folder)):
        return None
    return VectorIndex(path.parent, float(field(facts, "recall", float, path, DataError)))


def build_index(folder: ShardFolder, *, progress: Callable[[float], object] = lambda share: None) -> VectorIndex:
    """Builds the index of a folder, in the place of one that it has, and measures its recall.

    Half of the vectors' size is held in memory, as is the graph.

    Args:
        folder: Of at least one vector.
        progress: Called with the share of the work that is done.

    Raises:
        DataError: The folder is empty or far away, a shard is damaged or was changed meanwhile.
        OutputError: The folder cannot be written.
        MissingExtraError: usearch is not installed.
    """
    path = _local(folder)
    if not len(folder):
        raise DataError(f"{path} holds no vectors yet; `mixsiam embed` puts some into it")
    graph = _usearch().Index(ndim=folder.manifest.dim, metric="cos", dtype="f16")
    asked = np.linspace(0, len(folder) - 1, min(RECALL_QUERIES, len(folder))).round().astype(np.int64)
    queries: list[NDArray[np.float32]] = []
    first = 0
    for block in folder.blocks():
        graph.add(np.arange(first, first + len(block)), block)
        queries.append(block[asked[(asked >= first) & (asked < first + len(block))] - first])
        first += len(block)
        progress(first / len(folder))
    recall = _recall(graph, np.concatenate(queries), folder)
    with replacing(path / GRAPH) as temporary:
        graph.save(temporary.name)
    facts = {"format_version": FORMAT_VERSION, "built_from": _built_from(folder), "recall": recall}
    write_text(path / FACTS, json.dumps(facts, indent=1) + "\n")
    return VectorIndex(path, recall)


def _recall(graph: Any, queries: NDArray[np.float32], folder: ShardFolder) -> float:
    exact, _ = nearest_in_blocks(queries, folder.blocks(), RECALL_K)
    found, _ = _nearest(graph, queries, RECALL_K)
    return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(exact.tolist(), found.tolist(), strict=True)]))


def _nearest(graph: Any, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    found = graph.search(queries, min(k, len(graph)))
    rows = np.atleast_2d(found.keys).astype(np.int64)
    return rows, np.clip(1 - np.atleast_2d(found.distances), -1, 1).astype(np.float32)


def _built_from(folder: ShardFolder) -> str:
    """Returns a sha256 in hex that changes with the shards and with the graph's file; "" without one."""
    graph = folder.place.stamp(GRAPH)
    return sha256(json.dumps([folder.shards, folder.stamps, graph]).encode()).hexdigest() if graph else ""


def _local(folder: ShardFolder) -> Path:
    if not isinstance(folder.place, LocalPlace):
        raise DataError(f"{folder.place} is far away, and an index is searched where it lies; copy the folder here")
    return folder.place.path


def _usearch() -> Any:
    try:
        import usearch.index
    except ImportError:
        missing_extra("usearch", "index")
    return usearch.index
