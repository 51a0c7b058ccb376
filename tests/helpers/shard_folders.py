"""Folders of shards with vectors that a test chooses."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mixsiam_hub.vectors import shard_writer
from mixsiam_hub.vectors.shard_writer import FileState, Row, open_shards
from mixsiam_hub.vectors.shards import ShardManifest


def shard_folder(folder: Path, vectors: np.ndarray, *, rows: int = 10_000, dtype: str = "float32") -> Path:
    """Puts vectors, (N, D), into a folder, `rows` in a shard; paths are i0, i1, ..., and so are the files' contents."""
    manifest = ShardManifest("ab" * 32, "fp32-exact", "m", vectors.shape[1], dtype)
    usual, shard_writer.ROWS = shard_writer.ROWS, rows
    try:
        with open_shards(folder, manifest, by_content=False) as writer:
            for number, vector in enumerate(vectors):
                state = FileState(1, number, f"{number:064x}")
                if writer.claim(f"i{number}", state):
                    writer.put(f"i{number}", Row(vector.astype(np.float32), 2, 3, state))
            writer.flush()
    finally:
        shard_writer.ROWS = usual
    return folder
