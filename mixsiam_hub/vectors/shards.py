"""A folder of vectors that grows, as Parquet shards: whole at every moment, and one row a path in all of them.

    DIR/000001.parquet   up to ROWS rows
    DIR/_manifest.json   which encoder the vectors are of; written first, never changed
    DIR/_errors.jsonl    what the last run could not read
    DIR/.lock            held by the one run that writes; the system lets go of it when that process ends

A shard changes by a rename: new rows fill the last one, and the row of a changed image is replaced where it stands. So
a process that is killed loses what it had not flushed, and no reader ever sees a row twice. Readers of Parquet pass
over names that begin with `_` or `.`: `pandas.read_parquet(DIR)` gives the table. DIR may be an address, as
`s3://bucket/vectors`, where a file is sent whole in place of a rename, and where no lock is held.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby
from typing import Any, BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub import untrusted
from mixsiam_hub.errors import DataError
from mixsiam_hub.untrusted import one_line
from mixsiam_hub.vectors import parquet_file
from mixsiam_hub.vectors.nearest import all_finite
from mixsiam_hub.vectors.place import Place, Stamp, place_of

MANIFEST = "_manifest.json"
ERRORS = "_errors.jsonl"
DTYPES = ("float32", "float16")
FORMAT_VERSION = 1
LABELS = ("fingerprint", "variant", "model")
_MANIFEST_BYTES = 2**20
"""Of a manifest, no more are read."""

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


def read_manifest(place: Place) -> ShardManifest:
    """Reads which encoder a folder's vectors are of.

    Raises:
        DataError: It has no manifest, or a damaged one.
    """
    if not place.stamp(MANIFEST):
        raise DataError(
            f"{place} is no folder of vectors: it has no {MANIFEST}; `mixsiam embed ... --out DIR` writes it"
        )
    path = f"{place}/{MANIFEST}"
    with place.open(MANIFEST) as file:
        raw = untrusted.parse_json(file.read(_MANIFEST_BYTES), path, DataError)
    untrusted.one_of(raw.get("format_version"), (FORMAT_VERSION,), "format_version", path, DataError)
    untrusted.one_of(raw.get("dtype"), DTYPES, "dtype", path, DataError)
    untrusted.integer(raw.get("dim"), 1, 1 << 20, "dim", path, DataError)
    labels = {name: untrusted.field(raw, name, str, path, DataError) for name in LABELS}
    return ShardManifest(**labels, dim=raw["dim"], dtype=raw["dtype"])


def shard_stamps(place: Place) -> dict[str, Stamp]:
    """Returns the stamps of a folder's shards by their names, in the order of their numbers.

    Raises:
        DataError: The folder cannot be listed.
    """
    return {name: stamp for name, stamp in place.stamps().items() if re.fullmatch(r"[0-9]{6}\.parquet", name)}


@dataclass(frozen=True, eq=False)
class ShardFolder:
    """The vectors of a folder, of which no more than one shard is in memory.

    Rows go by their place in all shards. A folder that another run puts vectors into meanwhile is refused, since its
    rows may move.

    Attributes:
        place: The folder.
        manifest: What all its vectors have in common.
        shards: The shards' names in order.
        stamps: The stamp of each shard.
    """

    place: Place
    manifest: ShardManifest
    shards: Sequence[str]
    stamps: Sequence[Stamp]

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> ShardFolder:
        """Looks at which shards there are, in a folder or at an address.

        Raises:
            DataError: It is no folder of vectors.
            MissingExtraError: pyarrow is not installed, or, for an address, fsspec.
        """
        place = place_of(folder)
        manifest, stamps = read_manifest(place), shard_stamps(place)
        return cls(place, manifest, list(stamps), list(stamps.values()))

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
        counts = [self._read(shard, lambda parquet: parquet.metadata.num_rows) for shard in range(len(self.shards))]
        return list(accumulate(counts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yields the vectors of one shard after another, (N_i, D) float32 each, finite.

        Raises:
            DataError: A shard is damaged, of another encoder, or was changed since the folder was opened.
        """
        for shard in range(len(self.shards)):
            yield self._read(shard, self._vectors)

    def names(self, rows: Sequence[int]) -> list[str]:
        """Returns the paths of these rows; each of their shards is read once.

        Raises:
            DataError: As `blocks`.
        """
        found: dict[int, str] = {}
        for shard, group in groupby(sorted(set(rows)), lambda row: bisect_right(self._ends, row)):
            names = self._read(shard, parquet_file.read_names)
            start = self._ends[shard - 1] if shard else 0
            found |= {row: names[row - start] for row in group}
        return [found[row] for row in rows]

    def sha256s(self) -> NDArray[np.bytes_]:
        """Returns the sha256 of each image's file, (N,) of 64 hex digits; empty where it is not known.

        Raises:
            DataError: As `blocks`.
        """
        columns = [self._read(shard, _sha256s) for shard in range(len(self.shards))]
        return np.concatenate([np.empty(0, "S64"), *columns])

    def _vectors(self, parquet: Any) -> NDArray[np.float32]:
        vectors = parquet_file.read_vectors(parquet)
        if vectors.shape[1] != self.manifest.dim:
            raise DataError(f"its vectors have {vectors.shape[1]} numbers, not the {self.manifest.dim} of {MANIFEST}")
        if not all_finite(vectors):
            raise DataError("a vector holds NaN or infinity")
        return vectors

    def _read(self, shard: int, read: Callable[[Any], _T]) -> _T:
        """Reads something of a shard that is what it was when the folder was opened, and of the folder's encoder."""
        name, stamp = self.shards[shard], self.stamps[shard]
        with opened_shard(self.place, name) as file:
            parquet, labels = parquet_file.open_columns(file, stamp[0], LABELS)
            if labels != {label: getattr(self.manifest, label) for label in LABELS}:
                raise DataError(f"its vectors are not of the encoder in {MANIFEST}")
            found = read(parquet)
        if self.place.stamp(name) != stamp:
            raise DataError(f"{self.place}/{name} was written by another run meanwhile; try again when that has ended")
        return found


def _sha256s(parquet: Any) -> NDArray[np.bytes_]:
    return np.array([digest or "" for digest in parquet.read(["sha256"])["sha256"].to_pylist()], "S64")


@contextmanager
def opened_shard(place: Place, name: str) -> Iterator[BinaryIO]:
    """Opens a shard; whatever goes wrong with it within says how to mend the folder."""
    with place.open(name) as file:
        try:
            yield file
        except Exception as error:  # No list of what pyarrow raises would be complete.
            reason = one_line(error) or type(error).__name__
            raise DataError(
                f"{place}/{name} is damaged or no shard: {reason}; remove it, and `mixsiam embed` embeds its images "
                "again"
            ) from error
