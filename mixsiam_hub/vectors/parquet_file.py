"""Vectors as Parquet: a checksum a page, and a sha256 of the whole content, since no page's covers the footer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from mixsiam_hub.errors import DataError, missing_extra

if TYPE_CHECKING:
    from mixsiam_hub.vectors.table import VectorFile

_LABELS = ("fingerprint", "variant", "model")
_DIGEST = "sha256"


def pyarrow() -> tuple[Any, Any]:
    """Returns the modules pyarrow and pyarrow.parquet.

    Raises:
        MissingExtraError: pyarrow is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        missing_extra("pyarrow", "bulk")
    return pyarrow, pyarrow.parquet


def write(file: BinaryIO, data: VectorFile) -> None:
    """Writes a vector file, not compressed: floats gain little, and a reader knows their count from the file's size."""
    pa, pq = pyarrow()
    column = pa.FixedSizeListArray.from_arrays(pa.array(data.vectors.ravel(), pa.float32()), data.vectors.shape[1])
    labels = {name: getattr(data, name) for name in _LABELS}
    ids = _encoded(data.ids)
    schema = pa.schema(
        [("path", pa.binary() if ids and isinstance(ids[0], bytes) else pa.string()), ("vector", column.type)],
        metadata=labels | {_DIGEST: _digest(data.vectors, data.ids, labels)},
    )
    table = pa.table([pa.array(ids, schema.field("path").type), column], schema=schema)
    pq.write_table(table, file, use_dictionary=False, compression="none", write_page_checksum=True)


def read(file: BinaryIO, size: int) -> tuple[NDArray[np.float32], list[str], dict[str, str]]:
    """Reads one back.

    Args:
        file: The file.
        size: Its length in bytes, which the vectors may not exceed.

    Returns:
        Vectors, (N, D) float32; ids, N; and the labels by name.

    Raises:
        DataError: It holds something else, or the digest differs.
        Exception: It is damaged: whatever pyarrow raises.
    """
    parquet, found = open_columns(file, size, (*_LABELS, _DIGEST))
    vectors, ids = read_vectors(parquet), read_names(parquet)
    labels = {name: found[name] for name in _LABELS}
    if found[_DIGEST] != _digest(vectors, ids, labels):
        raise DataError("its content does not fit its sha256: it was damaged or changed; embed the images again")
    return vectors, ids, labels


def open_columns(file: BinaryIO, size: int, metadata: Sequence[str]) -> tuple[Any, dict[str, str]]:
    """Opens a file or a shard, once its columns `path` and `vector` are known to be what they must be.

    Args:
        file: The file.
        size: Its length in bytes, which the vectors may not exceed.
        metadata: What its schema's metadata must hold.

    Returns:
        A pyarrow.parquet.ParquetFile, and that metadata.

    Raises:
        DataError: It holds something else.
        Exception: It is damaged: whatever pyarrow raises.
    """
    _, pq = pyarrow()
    # Names by dictionary: a hostile file may hold one long name once and name it a million times.
    parquet = pq.ParquetFile(file, page_checksum_verification=True, read_dictionary=["path"])
    _check_schema(parquet.schema_arrow, metadata)
    check_rows(parquet, size)
    found = {name: parquet.schema_arrow.metadata[name.encode()].decode() for name in metadata}
    return parquet, found


def read_vectors(parquet: Any) -> NDArray[np.float32]:
    """Returns the vectors of an opened file, (N, D) float32."""
    column = parquet.read(["vector"])["vector"]
    vectors = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    matrix: NDArray[np.float32] = vectors.reshape(-1, column.type.list_size).astype(np.float32, copy=False)
    return matrix


def read_names(parquet: Any) -> list[str]:
    """Returns the paths of an opened file, N."""
    return [name for chunk in parquet.read(["path"])["path"].chunks for name in _decoded(chunk)]


def check_rows(parquet: Any, size: int) -> None:
    """Raises DataError if a ParquetFile says more vectors, which are not compressed, than its size in bytes allows."""
    # Not asked: metadata of a column, in which pyarrow ends the process on some damaged footers.
    column, rows = parquet.schema_arrow.field("vector").type, parquet.metadata.num_rows
    if rows * column.list_size * column.value_type.bit_width // 8 > size:
        raise DataError(f"it says {rows} vectors of {column.list_size}, more than its {size} bytes can hold")


def _check_schema(schema: Any, metadata: Sequence[str]) -> None:
    pa, _ = pyarrow()
    missing = [name for name in ("path", "vector") if name not in schema.names]
    missing += [name for name in metadata if name.encode() not in (schema.metadata or {})]
    if missing:
        raise DataError(f"it has no {', '.join(missing)}, which `mixsiam embed` writes")
    path, vector = schema.field("path").type, schema.field("vector").type
    if not pa.types.is_dictionary(path) or path.value_type not in (pa.string(), pa.binary()):
        raise DataError(f"column path is {path}; it must be string or binary")
    is_list = pa.types.is_fixed_size_list(vector) and vector.list_size >= 1
    if not is_list or vector.value_type not in (pa.float32(), pa.float16()):
        raise DataError(f"column vector is {vector}; it must be a fixed-size list of float32 or float16")


def _encoded(ids: Sequence[str]) -> list[str] | list[bytes]:
    """Returns the ids; all as bytes where one has lone surrogates, which stand for file names that are no Unicode."""
    try:
        "".join(ids).encode()
    except UnicodeEncodeError:
        return [name.encode("utf-8", "surrogatepass") for name in ids]
    return list(ids)


def _decoded(names: Any) -> list[str]:
    """Returns the names of a dictionary array, the equal ones as one object."""
    words = names.dictionary.to_pylist()
    words = [word.decode("utf-8", "surrogatepass") if isinstance(word, bytes) else word for word in words]
    return [words[index] for index in names.indices.to_pylist()]


def _digest(vectors: NDArray[np.float32], ids: Sequence[str], labels: Mapping[str, str]) -> str:
    digest = hashlib.sha256(json.dumps([vectors.shape, list(ids), labels], sort_keys=True).encode())
    digest.update(np.ascontiguousarray(vectors, "<f4").data)
    return digest.hexdigest()
