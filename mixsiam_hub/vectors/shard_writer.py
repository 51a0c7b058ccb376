"""What puts rows into a folder of shards, for one process at a time: see `vectors/shards.py` for the folder."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.errors import DataError, OutputError
from mixsiam_hub.untrusted import one_line
from mixsiam_hub.vectors.parquet_file import check_rows, pyarrow
from mixsiam_hub.vectors.place import Place, place_of
from mixsiam_hub.vectors.shards import (
    FORMAT_VERSION,
    LABELS,
    MANIFEST,
    ShardManifest,
    opened_shard,
    read_manifest,
    shard_stamps,
)

ROWS = 10_000
"""Of a full shard; no more vectors than these wait in memory."""
FLUSH_S = 30.0
"""What a kill may cost, in seconds of work."""

_STAMP_BYTES = 8
_NO_SHARD = bytes(4)


@dataclass(frozen=True)
class FileState:
    """What tells whether an image has changed; None for what is not known.

    Attributes:
        size_bytes: Of the encoded file.
        mtime_ns: When the file was last written, in nanoseconds since 1970; None for an image that is no file.
        sha256: Of the encoded file, in hex.
    """

    size_bytes: int | None = None
    mtime_ns: int | None = None
    sha256: str | None = None


@dataclass(frozen=True, eq=False)
class Row:
    """What a shard holds of one image beside its path.

    Attributes:
        vector: (D,) float32.
        height: Of the upright image, in pixels.
        width: Of the upright image, in pixels.
        state: Of its file, as it was before it was read.
    """

    vector: NDArray[np.float32]
    height: int
    width: int
    state: FileState


class ShardWriter:
    """Adds and replaces rows of one folder. It keeps about 200 bytes for each image that has a row.

    Attributes:
        place: The folder.
    """

    def __init__(self, place: Place, manifest: ShardManifest, by_content: bool) -> None:
        """Reads which images have a row; `open_shards` calls it, under the folder's lock."""
        pa, _ = pyarrow()
        self.place = place
        self._by_content = by_content
        self._dtype = np.dtype(manifest.dtype)
        self._schema = pa.schema(
            [
                ("path", pa.string()),
                ("sha256", pa.string()),
                ("vector", pa.list_(pa.from_numpy_dtype(self._dtype), manifest.dim)),
                ("width", pa.int32()),
                ("height", pa.int32()),
                ("size_bytes", pa.int64()),
                ("mtime_ns", pa.int64()),
            ],
            metadata={name: getattr(manifest, name) for name in LABELS},
        )
        self._known: dict[bytes, bytes] = {}  # Digest of the path -> stamp of the state, and the shard's number.
        self._pending: dict[str, Row | None] = {}  # None: its row goes.
        self._last, self._last_rows = 0, ROWS
        self._flushed_s = time.monotonic()
        self._stamps = shard_stamps(place)
        for name in self._stamps:
            self._last, self._last_rows = _number(name), self._remember(name)

    def knows(self, key: str) -> bool:
        """Tells whether an image has a row, or was claimed."""
        return _digest(key) in self._known

    def claim(self, key: str, state: FileState) -> bool:
        """Tells whether an image is new or changed; of each state of it, only the first who asks is told so."""
        digest, stamp = _digest(key), self._stamp(state)
        known = self._known.get(digest)
        if stamp and known and known[:_STAMP_BYTES] == stamp:
            return False
        self._known[digest] = (stamp or bytes(_STAMP_BYTES)) + (known[_STAMP_BYTES:] if known else _NO_SHARD)
        return True

    def put(self, key: str, row: Row | None) -> None:
        """Takes the row of a claimed image, in place of the one that it has; None leaves it without one.

        Raises:
            OutputError: A shard cannot be written, or the disk is full.
        """
        self._pending[key] = row
        if len(self._pending) >= ROWS or time.monotonic() - self._flushed_s > FLUSH_S:
            self.flush()

    def flush(self) -> None:
        """Writes what was put; may be called again after an interruption, since rows replace those of the same path.

        Raises:
            OutputError: A shard cannot be written, or the disk is full.
        """
        keys_of: dict[int, list[str]] = {}
        shard, rows = self._last, self._last_rows
        for key, row in self._pending.items():
            home = int.from_bytes(self._known[_digest(key)][_STAMP_BYTES:], "big")
            if not home and row:
                shard, rows = (shard, rows + 1) if rows < ROWS else (shard + 1, 1)
                home = shard
            if home:
                keys_of.setdefault(home, []).append(key)
        for shard, keys in keys_of.items():
            self._write(shard, keys)
        self._pending.clear()
        self._flushed_s = time.monotonic()

    def _write(self, shard: int, keys: list[str]) -> None:
        """Puts the pending rows of these paths into a shard."""
        pa, pq = pyarrow()
        import pyarrow.compute as pc

        name = f"{shard:06}.parquet"
        table = self._table({key: row for key in keys if (row := self._pending[key])})
        if self.place.stamp(name) != self._stamps.get(name):  # Where there is no lock, this is what tells.
            raise OutputError(f"another run has written {self.place}/{name}; let one of them end, then start it again")
        if name in self._stamps:
            old = self._read(name)
            is_replaced = pc.is_in(old["path"], value_set=pa.array(keys))
            table = pa.concat_tables([old.filter(pc.invert(is_replaced)), table])
        try:
            with self.place.replacing(name) as file:
                pq.write_table(table, file, use_dictionary=False, compression="none", write_page_checksum=True)
        finally:  # A signal may come once the file is there: it must not pass for another run's.
            if stamp := self.place.stamp(name):
                self._stamps[name] = stamp
        home = shard.to_bytes(len(_NO_SHARD), "big")
        for key in keys:
            digest = _digest(key)
            self._known[digest] = self._known[digest][:_STAMP_BYTES] + (home if self._pending[key] else _NO_SHARD)
        if shard >= self._last:
            self._last, self._last_rows = shard, len(table)

    def _table(self, rows: dict[str, Row]) -> Any:
        pa, _ = pyarrow()
        column = self._schema.field("vector").type
        vectors = np.array([row.vector for row in rows.values()], self._dtype)
        states = [row.state for row in rows.values()]
        return pa.table(
            {
                "path": list(rows),
                "sha256": [state.sha256 for state in states],
                "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), column.value_type), type=column),
                "width": [row.width for row in rows.values()],
                "height": [row.height for row in rows.values()],
                "size_bytes": [state.size_bytes for state in states],
                "mtime_ns": [state.mtime_ns for state in states],
            },
            schema=self._schema,
        )

    def _read(self, name: str, columns: Sequence[str] | None = None) -> Any:
        """Returns a shard's table."""
        _, pq = pyarrow()
        with opened_shard(self.place, name) as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            schema = parquet.schema_arrow
            if not schema.equals(self._schema) or schema.metadata != self._schema.metadata:
                raise DataError(f"its columns or their encoder are not those of {MANIFEST}")
            check_rows(parquet, self._stamps[name][0])
            return parquet.read(columns)

    def _remember(self, name: str) -> int:
        """Notes the images of a shard, and returns how many they are."""
        table = self._read(name, ["path", "sha256", "size_bytes", "mtime_ns"])
        shard = _number(name).to_bytes(len(_NO_SHARD), "big")
        for key, sha256, size_bytes, mtime_ns in zip(*(column.to_pylist() for column in table.columns), strict=True):
            stamp = self._stamp(FileState(size_bytes, mtime_ns, sha256))
            self._known[_digest(key)] = (stamp or bytes(_STAMP_BYTES)) + shard
        return len(table)

    def _stamp(self, state: FileState) -> bytes | None:
        """Returns what differs once an image has changed; None where nothing is known of it."""
        tells = state.sha256 if self._by_content or state.mtime_ns is None else (state.size_bytes, state.mtime_ns)
        return blake2b(repr(tells).encode(), digest_size=_STAMP_BYTES).digest() if tells else None


@contextmanager
def open_shards(folder: str | os.PathLike[str], manifest: ShardManifest, *, by_content: bool) -> Iterator[ShardWriter]:
    """Opens a folder to put vectors into, for this process alone.

    Args:
        folder: Made where it does not exist; or an address, as `s3://bucket/vectors`.
        manifest: What is to be put into it.
        by_content: An image has changed where its sha256 has, not the size or the time of its file.

    Raises:
        DataError: It holds other vectors, or a damaged shard.
        OutputError: It holds other files, cannot be written, or another run is at it.
        MissingExtraError: pyarrow, filelock or, for an address, fsspec is not installed.
    """
    check_shard_folder(folder)
    place = place_of(folder)
    _check_same(place, manifest)
    with place.writing():
        if not _check_same(place, manifest):
            content = {"format_version": FORMAT_VERSION} | dataclasses.asdict(manifest)
            with place.replacing(MANIFEST) as file:
                file.write(f"{json.dumps(content, indent=2)}\n".encode())
        yield ShardWriter(place, read_manifest(place), by_content)


def check_shard_folder(folder: str | os.PathLike[str]) -> None:
    """Refuses, before there are vectors, a place that cannot be a folder of them; leaves nothing behind.

    Raises:
        DataError: An address that is not known or cannot be listed.
        OutputError: It is a file, holds files of other kinds, or cannot be made.
        MissingExtraError: pyarrow is not installed, or, for an address, fsspec.
    """
    place = place_of(folder)
    place.check()
    stamps = place.stamps()
    if stamps and MANIFEST not in stamps:
        raise OutputError(f"{place} holds files and no {MANIFEST}; give a new or an empty folder")


def _check_same(place: Place, manifest: ShardManifest) -> bool:
    """Tells whether a folder has vectors; raises DataError if others may not stand beside them."""
    if not place.stamp(MANIFEST):
        return False
    found = read_manifest(place)
    for name in ("fingerprint", "variant", "dtype", "dim"):
        if getattr(found, name) != getattr(manifest, name):
            raise DataError(
                f"{place} holds vectors of {name} {one_line(getattr(found, name))} (model {one_line(found.model)}), "
                f"not {getattr(manifest, name)}; give --out another folder, or the options that this one was made with"
            )
    return True


def _number(name: str) -> int:
    return int(name.removesuffix(".parquet"))


def _digest(key: str) -> bytes:
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
