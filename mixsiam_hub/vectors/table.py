"""Vectors on disk: .npz with numpy alone, .parquet with the extra `bulk`. Neither holds anything that unpickles."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.atomic import replacing
from mixsiam_hub.errors import DataError
from mixsiam_hub.images.finding import is_address
from mixsiam_hub.untrusted import one_line, open_regular, quote
from mixsiam_hub.vectors import npz_file, parquet_file
from mixsiam_hub.vectors.nearest import all_finite
from mixsiam_hub.vectors.shards import ShardFolder

BUILTIN_LABEL = "built-in"
"""What `VectorFile.model` holds for the encoder that comes with this package."""


class Vectors(Protocol):
    """Embeddings that are looked at a block at a time: a `VectorFile`, or a `ShardFolder` of any size."""

    @property
    def fingerprint(self) -> str:
        """Of the encoder, a sha256 in hex."""

    @property
    def variant(self) -> str:
        """Of the encoder: precision and decoding."""

    @property
    def model(self) -> str:
        """What the encoder was opened by, for people."""

    def __len__(self) -> int: ...

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yields the vectors in order, (N_i, D) float32 each, finite."""

    def names(self, rows: Sequence[int]) -> list[str]:
        """Returns the names of the images in these rows."""

    def sha256s(self) -> NDArray[np.bytes_]:
        """Returns the sha256 of each image's file, (N,) of 64 hex digits; empty where it is not known."""


@dataclass(frozen=True, eq=False)
class VectorFile:
    """Embeddings, what they embed, and the encoder they come from.

    Vectors of two files compare only if fingerprint and variant are equal.

    Attributes:
        vectors: (N, D) float32, finite, D at least 1.
        ids: N names, usually paths as they were given.
        fingerprint: Of the encoder, a sha256 in hex.
        variant: Of the encoder: precision and decoding.
        model: What the encoder was opened by, for people: a folder, `org/name@commit`, or BUILTIN_LABEL.
    """

    vectors: NDArray[np.float32]
    ids: list[str]
    fingerprint: str
    variant: str
    model: str

    def __post_init__(self) -> None:
        """Raises DataError unless there is one text id a row and the rows are finite float32."""
        shape, dtype = self.vectors.shape, self.vectors.dtype
        if len(shape) != 2 or not shape[1] or dtype != np.float32 or len(self.ids) != len(self.vectors):
            raise DataError(
                f"vectors have shape {shape} and dtype {dtype}, ids are {len(self.ids)}; "
                "they must be (N, D) float32, D at least 1, and N"
            )
        if not all_finite(self.vectors):
            row = int(np.flatnonzero(~np.isfinite(self.vectors).all(axis=1))[0])
            raise DataError(f"vector {row} holds NaN or infinity; leave out the images that were skipped")
        odd = next((name for name in self.ids if not isinstance(name, str) or "\0" in name), None)
        if odd is not None:
            raise DataError(f"id {quote(odd)} must be text without NUL characters")

    def __len__(self) -> int:
        return len(self.ids)

    def blocks(self) -> Iterator[NDArray[np.float32]]:
        """Yields all vectors, as one block."""
        yield self.vectors

    def names(self, rows: Sequence[int]) -> list[str]:
        """Returns the ids of these rows."""
        return [self.ids[row] for row in rows]

    def sha256s(self) -> NDArray[np.bytes_]:
        """Returns N empty texts: such a file does not hold the sha256 of its images."""
        return np.zeros(len(self), "S64")


def write_vectors(path: str | os.PathLike[str], data: VectorFile) -> None:
    """Writes a vector file, whole or not at all, as `vector_writer` does.

    Args:
        path: Where to; its suffix, .npz or .parquet, chooses the format.
        data: What to write.

    Raises:
        DataError: Another suffix.
        OutputError: A place that cannot be written.
        MissingExtraError: .parquet without pyarrow.
    """
    with vector_writer(path) as write:
        write(data)


@contextmanager
def vector_writer(path: str | os.PathLike[str]) -> Iterator[Callable[[VectorFile], None]]:
    """Tries whether a vector file can be written, before its vectors are computed, and gives what writes it.

    An .npz holds the arrays `vectors` (N, D) float32, `ids` (N,) unicode, and the unicode scalars `fingerprint`,
    `variant` and `model`. A .parquet holds the columns `path` (string; binary where a file name is no Unicode) and
    `vector` (fixed-size list of D float32), and in its schema's metadata the three labels and a sha256 of it all.

    Args:
        path: Where to; its suffix, .npz or .parquet, chooses the format. An existing file is replaced at the end.

    Raises:
        DataError: Another suffix.
        OutputError: A place that cannot be written.
        MissingExtraError: .parquet without pyarrow.
    """
    suffix = _suffix(path)
    if suffix == ".parquet":
        parquet_file.pyarrow()
    write = {".npz": npz_file.write, ".parquet": parquet_file.write}[suffix]
    with replacing(path) as file:
        yield partial(write, file)


def open_vectors(path: str | os.PathLike[str]) -> Vectors:
    """Opens a file that `write_vectors` wrote, which is read whole, or a folder or address of shards, which is not.

    Raises:
        DataError: As `read_vectors`; a folder's shards are checked as they are read.
        MissingExtraError: .parquet or a folder without pyarrow.
    """
    return ShardFolder.open(path) if _is_folder(path) else read_vectors(path)


def read_vectors(path: str | os.PathLike[str]) -> VectorFile:
    """Reads a file that `write_vectors` wrote, or a folder or address of shards.

    Types, shapes and counts are compared with the size of the file before anything is allocated, and every bit of the
    content has a checksum.

    Raises:
        DataError: The file is absent, damaged, or not of this kind.
        MissingExtraError: .parquet or a folder without pyarrow.
    """
    if _is_folder(path):
        folder = ShardFolder.open(path)
        vectors = np.concatenate([np.empty((0, folder.manifest.dim), np.float32), *folder.blocks()])
        return VectorFile(vectors, folder.names(range(len(vectors))), folder.fingerprint, folder.variant, folder.model)
    suffix = _suffix(path)
    if suffix == ".parquet":
        parquet_file.pyarrow()
    read = {".npz": npz_file.read, ".parquet": parquet_file.read}[suffix]
    if not os.path.lexists(path):
        raise DataError(f"{path}: no such file; `mixsiam embed ... --out {path}` writes one")
    with open_regular(path, DataError) as file:
        try:
            vectors, ids, labels = read(file, os.fstat(file.fileno()).st_size)
            return VectorFile(vectors, ids, **labels)
        except Exception as error:  # No list of what zipfile, numpy and pyarrow raise would be complete.
            raise DataError(f"{path} is no vector file: {one_line(error) or type(error).__name__}") from error


def _is_folder(path: str | os.PathLike[str]) -> bool:
    return os.path.isdir(path) or (isinstance(path, str) and is_address(path))


def _suffix(path: str | os.PathLike[str]) -> str:
    suffix = Path(path).suffix
    if suffix not in (".npz", ".parquet"):
        raise DataError(f"{path}: a vector file must end in .npz or .parquet")
    return suffix
