"""What puts rows into a folder of shards, for one process at a time: see `vectors/shards.py` for the folder."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.atomic import check_new_folder, make_folder, replacing, write_text
from mixsiam_hub.errors import DataError, OutputError, missing_extra
from mixsiam_hub.untrusted import one_line
from mixsiam_hub.vectors.parquet_file import check_rows, pyarrow
from mixsiam_hub.vectors.shards import (
    FORMAT_VERSION,
    LABELS,
    MANIFEST,
    ShardManifest,
    opened_shard,
    read_manifest,
    shard_paths,
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
    """Adds and replaces rows of one folder. It keeps about 200 bytes for each image that has a row."""

    def __init__(self, folder: Path, manifest: ShardManifest, by_content: bool) -> None:
        """Reads which images have a row; `open_shards` calls it, under the folder's lock."""
        pa, _ = pyarrow()
        self._folder = folder
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
        for path in shard_paths(folder):
            self._last, self._last_rows = int(path.stem), self._remember(path)

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

        path = self._folder / f"{shard:06}.parquet"
        table = self._table({key: row for key in keys if (row := self._pending[key])})
        if path.exists():
            old = self._read(path)
            is_replaced = pc.is_in(old["path"], value_set=pa.array(keys))
            table = pa.concat_tables([old.filter(pc.invert(is_replaced)), table])
        with replacing(path, durable=True) as file:
            pq.write_table(table, file, use_dictionary=False, compression="none", write_page_checksum=True)
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

    def _read(self, path: Path, columns: Sequence[str] | None = None) -> Any:
        """Returns a shard's table."""
        _, pq = pyarrow()
        with opened_shard(path) as file:
            parquet = pq.ParquetFile(file, page_checksum_verification=True)
            schema = parquet.schema_arrow
            if not schema.equals(self._schema) or schema.metadata != self._schema.metadata:
                raise DataError(f"its columns or their encoder are not those of {MANIFEST}")
            check_rows(parquet, path.stat().st_size)
            return parquet.read(columns)

    def _remember(self, path: Path) -> int:
        """Notes the images of a shard, and returns how many they are."""
        table = self._read(path, ["path", "sha256", "size_bytes", "mtime_ns"])
        shard = int(path.stem).to_bytes(len(_NO_SHARD), "big")
        for key, sha256, size_bytes, mtime_ns in zip(*(column.to_pylist() for column in table.columns), strict=True):
            stamp = self._stamp(FileState(size_bytes, mtime_ns, sha256))
            self._known[_digest(key)] = (stamp or bytes(_STAMP_BYTES)) + shard
        return len(table)

    def _stamp(self, state: FileState) -> bytes | None:
        """Returns what differs once an image has changed; None where nothing is known of it."""
        tells = state.sha256 if self._by_content or state.mtime_ns is None else (state.size_bytes, state.mtime_ns)
        return blake2b(repr(tells).encode(), digest_size=_STAMP_BYTES).digest() if tells else None


@contextmanager
def open_shards(folder: Path, manifest: ShardManifest, *, by_content: bool) -> Iterator[ShardWriter]:
    """Opens a folder to put vectors into, for this process alone.

    Args:
        folder: Made where it does not exist.
        manifest: What is to be put into it.
        by_content: An image has changed where its sha256 has, not the size or the time of its file.

    Raises:
        DataError: It holds other vectors, or a damaged shard.
        OutputError: It holds other files, cannot be written, or another run is at it.
        MissingExtraError: pyarrow or filelock is not installed.
    """
    check_shard_folder(folder)
    if (folder / MANIFEST).exists():
        _check_same(folder, manifest)
    make_folder(folder)
    with _locked(folder):
        for leftover in folder.glob(".*.tmp"):  # Of a run that was killed.
            leftover.unlink()
        if (folder / MANIFEST).exists():
            _check_same(folder, manifest)
        else:
            content = {"format_version": FORMAT_VERSION} | dataclasses.asdict(manifest)
            write_text(folder / MANIFEST, json.dumps(content, indent=2) + "\n")
        yield ShardWriter(folder, read_manifest(folder), by_content)


def check_shard_folder(folder: Path) -> None:
    """Refuses, before there are vectors, a place that cannot be a folder of them; leaves nothing behind.

    Raises:
        OutputError: It is a file, holds files of other kinds, or cannot be made.
        MissingExtraError: pyarrow is not installed.
    """
    pyarrow()
    if not folder.is_dir():
        check_new_folder(folder)
    elif not (folder / MANIFEST).exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
        raise OutputError(f"{folder} holds files and no {MANIFEST}; give a new or an empty folder")


def _check_same(folder: Path, manifest: ShardManifest) -> None:
    """Raises DataError if a folder's vectors may not stand beside others."""
    found = read_manifest(folder)
    for name in ("fingerprint", "variant", "dtype", "dim"):
        if getattr(found, name) != getattr(manifest, name):
            raise DataError(
                f"{folder} holds vectors of {name} {one_line(getattr(found, name))} (model {one_line(found.model)}), "
                f"not {getattr(manifest, name)}; give --out another folder, or the options that this one was made with"
            )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        import filelock
    except ImportError:
        missing_extra("filelock", "bulk")
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise OutputError(f"another run is writing to {folder}; wait until it ends, or give another folder") from None
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


def _digest(key: str) -> bytes:
    return blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16).digest()
