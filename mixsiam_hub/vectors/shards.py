"""A folder of vectors that grows, as Parquet shards: whole at every moment, and one row a path in all of them.

    DIR/000001.parquet   up to ROWS rows
    DIR/_manifest.json   which encoder the vectors are of; written first, never changed
    DIR/_errors.jsonl    what the last run could not read
    DIR/.lock            held by the one run that writes; the system lets go of it when that process ends

A shard changes by a rename: new rows fill the last one, and the row of a changed image is replaced where it stands. So
a process that is killed loses what it had not flushed, and no reader ever sees a row twice. Readers of Parquet pass
over names that begin with `_` or `.`: `pandas.read_parquet(DIR)` gives the table.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub import untrusted
from mixsiam_hub.errors import DataError
from mixsiam_hub.untrusted import one_line, open_regular
from mixsiam_hub.vectors import parquet_file

MANIFEST = "_manifest.json"
ERRORS = "_errors.jsonl"
DTYPES = ("float32", "float16")
FORMAT_VERSION = 1
LABELS = ("fingerprint", "variant", "model")


@dataclass(frozen=True)
class ShardManifest:
    """What all vectors of a folder have in common.

    Attributes:
        fingerprint: Of the encoder, a sha256 in hex.
        variant: Of the encoder: precision and decoding.
        model: What the encoder was opened by, for people: as in `VectorFile`.
        dim: Length of a vector.
        dtype: What a vector is stored as: one of DTYPES.
    """

    fingerprint: str
    variant: str
    model: str
    dim: int
    dtype: str


def read_manifest(folder: Path) -> ShardManifest:
    """Reads which encoder a folder's vectors are of.

    Raises:
        DataError: It has no manifest, or a damaged one.
    """
    path = folder / MANIFEST
    if not path.exists():
        raise DataError(
            f"{folder} is no folder of vectors: it has no {MANIFEST}; `mixsiam embed ... --out DIR` writes it"
        )
    raw = untrusted.read_json(path, DataError)
    untrusted.one_of(raw.get("format_version"), (FORMAT_VERSION,), "format_version", path, DataError)
    untrusted.one_of(raw.get("dtype"), DTYPES, "dtype", path, DataError)
    untrusted.integer(raw.get("dim"), 1, 1 << 20, "dim", path, DataError)
    labels = {name: untrusted.field(raw, name, str, path, DataError) for name in LABELS}
    return ShardManifest(**labels, dim=raw["dim"], dtype=raw["dtype"])


def shard_paths(folder: Path) -> list[Path]:
    """Returns a folder's shards in the order of their numbers."""
    return sorted(folder.glob(f"{'[0-9]' * 6}.parquet"))


def read_shards(folder: Path) -> tuple[NDArray[np.float32], list[str], dict[str, str]]:
    """Reads all vectors of a folder.

    Returns:
        Vectors, (N, D) float32; paths, N; and the labels by name.

    Raises:
        DataError: It is no such folder, or a shard is damaged or of another encoder.
        MissingExtraError: pyarrow is not installed.
    """
    parquet_file.pyarrow()
    manifest = read_manifest(folder)
    labels = {name: getattr(manifest, name) for name in LABELS}
    vectors, ids = [np.empty((0, manifest.dim), np.float32)], []
    for path in shard_paths(folder):
        with opened_shard(path) as file:
            rows, names, metadata = parquet_file.read_columns(file, path.stat().st_size, LABELS)
            if rows.shape[1] != manifest.dim or labels != {name: metadata[name] for name in LABELS}:
                raise DataError(f"its vectors are not of the encoder in {MANIFEST}")
        vectors.append(rows)
        ids += names
    return np.concatenate(vectors), ids, labels


@contextmanager
def opened_shard(path: Path) -> Iterator[BinaryIO]:
    """Opens a shard; whatever goes wrong with it within says how to mend the folder."""
    with open_regular(path, DataError) as file:
        try:
            yield file
        except Exception as error:  # No list of what pyarrow raises would be complete.
            reason = one_line(error) or type(error).__name__
            raise DataError(
                f"{path} is damaged or no shard: {reason}; remove it, and `mixsiam embed` embeds its images again"
            ) from error
