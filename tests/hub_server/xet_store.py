"""Content as xet stores it: files are lists of runs of chunks, chunks lie in xorbs, and shards say which.

Only the outlines of the two formats are read. Nothing is decompressed here: whoever wants a file's bytes asks hf_xet.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

SHARD_HEADER_BYTES = RECORD_BYTES = 48
HAS_VERIFICATION, HAS_SHA256 = 0x80000000, 0x40000000
END_OF_FILES = b"\xff" * 32
CHUNK_HEADER_BYTES = 8
XORB_FOOTER = b"XETBLOB"


@dataclass(frozen=True)
class Run:
    """Chunks `first` to `end` (exclusive) of a xorb, `size` bytes when decompressed."""

    xorb: str
    size: int
    first: int
    end: int


@dataclass
class XetStore:
    """What clients have uploaded.

    Attributes:
        xorbs: Hash -> bytes as they came.
        files: Xet's hash of a file -> its runs.
        hashes: sha256 -> xet's hash of the same file.
    """

    xorbs: dict[str, bytes] = field(default_factory=dict)
    files: dict[str, list[Run]] = field(default_factory=dict)
    hashes: dict[str, str] = field(default_factory=dict)

    def hash_of(self, sha256: str) -> str | None:
        """Xet's hash of a file, if it is here."""
        return self.hashes.get(sha256)

    def size(self, xet_hash: str) -> int:
        """Length of a file, in bytes."""
        return sum(run.size for run in self.files[xet_hash])

    def add_shard(self, shard: bytes) -> None:
        """Takes in the files that a shard describes: all of them, or none.

        Raises:
            KeyError: One lies in a xorb that was not uploaded.
        """
        files = list(read_shard(shard))
        for _, _, runs in files:
            for run in runs:
                self.xorbs[run.xorb]
        for xet_hash, sha256, runs in files:
            self.files[xet_hash] = runs
            if sha256:
                self.hashes[sha256] = xet_hash

    def byte_range(self, run: Run) -> tuple[int, int]:
        """First and last byte of a run in its xorb."""
        offsets = chunk_offsets(self.xorbs[run.xorb])
        return offsets[run.first], offsets[run.end] - 1


def read_shard(shard: bytes) -> Iterator[tuple[str, str | None, list[Run]]]:
    """The files of a shard: xet's hash, sha256 where it is given, runs."""
    at = SHARD_HEADER_BYTES
    while shard[at : at + 32] != END_OF_FILES:
        name = hash_at(shard, at)
        flags, count = struct.unpack_from("<II", shard, at + 32)
        runs = [_read_run(shard, at + RECORD_BYTES * (1 + i)) for i in range(count)]
        at += RECORD_BYTES * (1 + count * (2 if flags & HAS_VERIFICATION else 1))
        sha256 = hash_at(shard, at) if flags & HAS_SHA256 else None
        at += RECORD_BYTES if sha256 else 0
        yield name, sha256, runs


def _read_run(shard: bytes, at: int) -> Run:
    return Run(hash_at(shard, at), *struct.unpack_from("<III", shard, at + 36))


def hash_at(data: bytes, at: int) -> str:
    """A hash as xet writes it, four little-endian words, in the hexadecimal that it goes by elsewhere."""
    return "".join(f"{word:016x}" for word in struct.unpack_from("<4Q", data, at))


def chunk_offsets(xorb: bytes) -> list[int]:
    """Where each chunk of a xorb begins, and where the last one ends."""
    offsets, at = [0], 0
    while at < len(xorb) and not xorb.startswith(XORB_FOOTER, at):
        at += CHUNK_HEADER_BYTES + int.from_bytes(xorb[at + 1 : at + 4], "little")
        offsets.append(at)
    return offsets
