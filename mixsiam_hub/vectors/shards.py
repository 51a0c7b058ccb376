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

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub import untrusted
from mixsiam_hub.errors import DataError
from mixsiam_hub.untrusted import one_line, open_regular
from mixsiam_hub.vectors import parquet_file
from mixsiam_hub.vectors.nearest import all_finite

MANIFEST = "_manifest.json"
ERRORS = "_errors.jsonl"
DTYPES = ("float32", "float16")
FORMAT_VERSION = 1
LABELS = ("fingerprint", "variant", "model")

_T = TypeVar("_T")


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


@dataclass(frozen=True, eq=False)
class ShardFolder:
    """The vectors of a folder, of which no more than one shard is in memory.

    Rows go by their place in all shards. A folder that another run puts vectors into meanwhile is refused, since its
    rows may move.

    Attributes:
        folder: The folder.
        manifest: What all its vectors have in common.
        shards: The shards in order.
        stamps: Size in bytes and time of the last write, in nanoseconds, of each shard.
    """

    folder: Path
    manifest: ShardManifest
    shards: Sequence[Path]
    stamps: Sequence[tuple[int, int]]

    @classmethod
    def open(cls, folder: Path) -> ShardFolder:
        """Looks at which shards there are.

        Raises:
            DataError: It is no folder of vectors.
            MissingExtraError: pyarrow is not installed.
        """
        parquet_file.pyarrow()
        shards = shard_paths(folder)
        return cls(folder, read_manifest(folder), shards, [file_stamp(path) for path in shards])

    @property
    def fingerprint(self) -> str:
        """Of the encoder."""
        return self.manifest.fingerprint

    @property
    def variant(self) -> str:
        """Of the encoder."""
        return self.manifest.variant

    @property
    def model(self) -> str:
        """What the encoder was opened by, for people."""
        return self.manifest.model

    @cached_property
    def _ends(self) -> list[int]:
        """Of each shard the first row behind it.

        Raises:
            DataError: A shard is damaged.
        """
        counts = [self._read(place, lambda parquet: parquet.metadata.num_rows) for place in range(len(self.shards))]
        return list(accumulate(counts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yields the vectors of one shard after another, (N_i, D) float32 each, finite.

        Raises:
            DataError: A shard is damaged, of another encoder, or was changed since the folder was opened.
        """
        for place in range(len(self.shards)):
            yield self._read(place, self._vectors)

    def names(self, rows: Sequence[int]) -> list[str]:
        """Returns the paths of these rows; each of their shards is read once.

        Raises:
            DataError: As `blocks`.
        """
        found: dict[int, str] = {}
        for place, group in groupby(sorted(set(rows)), lambda row: bisect_right(self._ends, row)):
            names = self._read(place, parquet_file.read_names)
            start = self._ends[place - 1] if place else 0
            found |= {row: names[row - start] for row in group}
        return [found[row] for row in rows]

    def sha256s(self) -> NDArray[np.bytes_]:
        """Returns the sha256 of each image's file, (N,) of 64 hex digits; empty where it is not known.

        Raises:
            DataError: As `blocks`.
        """
        columns = [self._read(place, _sha256s) for place in range(len(self.shards))]
        return np.concatenate([np.empty(0, "S64"), *columns])

    def _vectors(self, parquet: Any) -> NDArray[np.float32]:
        vectors = parquet_file.read_vectors(parquet)
        if vectors.shape[1] != self.manifest.dim:
            raise DataError(f"its vectors have {vectors.shape[1]} numbers, not the {self.manifest.dim} of {MANIFEST}")
        if not all_finite(vectors):
            raise DataError("a vector holds NaN or infinity")
        return vectors

    def _read(self, place: int, read: Callable[[Any], _T]) -> _T:
        """Reads something of a shard that is what it was when the folder was opened, and of the folder's encoder."""
        path = self.shards[place]
        with opened_shard(path) as file:
            parquet, labels = parquet_file.open_columns(file, path.stat().st_size, LABELS)
            if labels != {name: getattr(self.manifest, name) for name in LABELS}:
                raise DataError(f"its vectors are not of the encoder in {MANIFEST}")
            found = read(parquet)
        if file_stamp(path) != self.stamps[place]:
            raise DataError(f"{path} was written by another run meanwhile; try again when that has ended")
        return found


def file_stamp(path: Path) -> tuple[int, int]:
    """Returns what changes when a file is written: its size in bytes and the time, in nanoseconds."""
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


def _sha256s(parquet: Any) -> NDArray[np.bytes_]:
    return np.array([digest or "" for digest in parquet.read(["sha256"])["sha256"].to_pylist()], "S64")


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
