"""Vectors on disk: .npz with numpy alone, .parquet with the extra `bulk`. Neither holds anything that unpickles."""

from __future__ import annotations

import os
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.atomic import replacing
from mixsiam_hub.errors import DataError, missing_extra

_LABELS = ("fingerprint", "variant", "model")


@dataclass(frozen=True, eq=False)
class VectorFile:
    """Embeddings, what they embed, and the encoder they come from.

    Vectors of two files compare only if fingerprint and variant are equal.

    Attributes:
        vectors: (N, D) float32; a row of NaN stands for an image that was skipped.
        ids: N names, usually paths as they were given.
        fingerprint: Of the encoder, a sha256 in hex.
        variant: Of the encoder: precision and decoding.
        model: Name of the encoder, for people.
    """

    vectors: NDArray[np.float32]
    ids: list[str]
    fingerprint: str
    variant: str
    model: str

    def __post_init__(self) -> None:
        """Raises DataError unless there is one id a row and the rows are float32."""
        if self.vectors.ndim != 2 or self.vectors.dtype != np.float32 or len(self.ids) != len(self.vectors):
            raise DataError(
                f"vectors have shape {self.vectors.shape} and dtype {self.vectors.dtype}, ids are {len(self.ids)}; "
                "they must be (N, D) float32 and N"
            )


def check_place(path: str | os.PathLike[str]) -> None:
    """Finds out whether `write_vectors` could write there, before the vectors are computed.

    Raises:
        DataError: Another suffix, or no such folder.
        MissingExtraError: .parquet without pyarrow.
    """
    path = Path(path)
    if _suffix(path) == ".parquet":
        _pyarrow()
    if not path.absolute().parent.is_dir():
        raise DataError(f"{path} cannot be written: the folder {path.parent} does not exist; make it first")


def write_vectors(path: str | os.PathLike[str], data: VectorFile) -> None:
    """Writes a vector file, whole or not at all.

    An .npz holds the arrays `vectors` (N, D) float32, `ids` (N,) unicode, and the unicode scalars `fingerprint`,
    `variant` and `model`. A .parquet holds the columns `path` (string) and `vector` (fixed-size list of D float32),
    and the three labels in its schema's metadata.

    Args:
        path: Where to; its suffix, .npz or .parquet, chooses the format. An existing file is replaced.
        data: What to write.

    Raises:
        DataError: Another suffix.
        OutputError: A place that cannot be written.
        MissingExtraError: .parquet without pyarrow.
    """
    path = Path(path)
    writer = {".npz": _write_npz, ".parquet": _write_parquet}[_suffix(path)]
    with replacing(path) as file:
        writer(file, data)


def read_vectors(path: str | os.PathLike[str]) -> VectorFile:
    """Reads a file that `write_vectors` wrote.

    Raises:
        DataError: The file is absent, damaged, or not of this kind.
        MissingExtraError: .parquet without pyarrow.
    """
    path = Path(path)
    reader = {".npz": _read_npz, ".parquet": _read_parquet}[_suffix(path)]
    try:
        return reader(path)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; `mixsiam embed ... --out {path}` writes one") from None
    except KeyError as error:
        raise DataError(f"{path} was not written by `mixsiam embed`: {error.args[0]}") from None
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error, DataError) as error:
        raise DataError(f"{path} is no vector file: {error}") from error


def _suffix(path: Path) -> str:
    if path.suffix not in (".npz", ".parquet"):
        raise DataError(f"{path}: a vector file must end in .npz or .parquet")
    return path.suffix


def _write_npz(file: BinaryIO, data: VectorFile) -> None:
    labels: dict[str, Any] = {name: np.array(getattr(data, name)) for name in _LABELS}
    np.savez(file, vectors=data.vectors, ids=np.array(data.ids, dtype=str), **labels)


def _read_npz(path: Path) -> VectorFile:
    archive = np.load(path, allow_pickle=False)
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("it holds a single array, not an .npz archive")
    with archive:
        labels = {name: str(archive[name]) for name in _LABELS}
        return VectorFile(archive["vectors"], archive["ids"].astype(str).tolist(), **labels)


def _write_parquet(file: BinaryIO, data: VectorFile) -> None:
    pa, pq = _pyarrow()
    # File names that are not valid Unicode come as lone surrogates, which Parquet's strings cannot hold.
    ids = [name.encode("utf-8", "backslashreplace").decode() for name in data.ids]
    dim = data.vectors.shape[1]
    column = pa.FixedSizeListArray.from_arrays(pa.array(data.vectors.ravel(), pa.float32()), dim)
    labels = {name: getattr(data, name) for name in _LABELS}
    schema = pa.schema([("path", pa.string()), ("vector", column.type)], metadata=labels)
    pq.write_table(pa.table([pa.array(ids, pa.string()), column], schema=schema), file, use_dictionary=False)


def _read_parquet(path: Path) -> VectorFile:
    pa, pq = _pyarrow()
    table = pq.read_table(path)
    if not pa.types.is_fixed_size_list(table["vector"].type):
        raise ValueError(f"column vector is {table['vector'].type}; it must be a fixed-size list of float32")
    metadata = table.schema.metadata or {}
    labels = {name: metadata[name.encode()].decode() for name in _LABELS}
    column = table["vector"].combine_chunks()
    vectors = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
    return VectorFile(vectors, table["path"].to_pylist(), **labels)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        missing_extra("pyarrow", "bulk")
    return pyarrow, pyarrow.parquet
